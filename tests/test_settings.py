"""Flags, settings files, presets: all from one dataclass."""

import dataclasses

import pytest

from pygpt.errors import UserError
from pygpt.training.settings import (
    BY_OPTIMIZER,
    FIELDS,
    PRESETS,
    TrainSettings,
    format_settings,
    parse,
    read_settings,
)


@pytest.fixture
def file(tmp_path):
    """Writes a settings file and returns its path."""

    def write(text):
        path = tmp_path / "run.toml"
        path.write_text(text)
        return str(path)

    return write


def refused(argv):
    with pytest.raises(UserError) as caught:
        parse(argv)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def test_the_defaults():
    settings = parse([]).settings
    assert settings == TrainSettings(out_dir="out/stdlib")
    shape = (settings.n_layer, settings.n_head, settings.n_embd, settings.seq_len, settings.batch_size)
    assert shape == (2, 4, 128, 64, 12)
    assert (settings.max_iters, settings.learning_rate, settings.dtype) == (1800, 4e-3, "auto")


@pytest.mark.parametrize(
    ("preset", "data", "tokenizer"), [("bytes", "stdlib", "byte"), ("shakespeare-char", "shakespeare", "char")]
)
def test_presets_that_are_nanogpt_on_a_cpu(preset, data, tokenizer):
    settings = parse(["--preset", preset]).settings
    assert (settings.data, settings.tokenizer, settings.dtype) == (data, tokenizer, "float32")
    shape = (settings.n_layer, settings.n_head, settings.n_embd, settings.seq_len, settings.batch_size)
    assert shape == (4, 4, 128, 64, 12)
    assert (settings.max_iters, settings.learning_rate, settings.warmup) == (2000, 1e-3, 100)
    assert settings.final_lr == pytest.approx(1e-4)
    assert (settings.beta1, settings.beta2, settings.weight_decay, settings.grad_clip) == (0.9, 0.99, 0.1, 1.0)
    assert settings.adam_eps == 1e-8


def test_later_wins(file):
    config = file("n_layer = 7\nbatch_size = 3\nlearning_rate = 1\nmin_lr = 0\n")
    request = parse(["--preset", "shakespeare-char-gpu", "--config", config, "--batch-size", "5"])
    settings = request.settings
    assert settings.data == "shakespeare"  # preset over default
    assert settings.n_layer == 7  # file over preset
    assert settings.batch_size == 5  # flag over file
    assert settings.beta2 == 0.99  # default
    assert settings.learning_rate == 1.0
    assert isinstance(settings.learning_rate, float)
    assert request.given >= {"data", "n_layer", "batch_size", "min_lr"}
    assert "beta2" not in request.given


def test_every_setting_is_a_flag_and_a_key(file):
    examples = {
        "data": "x.txt",
        "tokenizer": "char",
        "vocab": "folder",
        "init_from": "gpt2",
        "out_dir": "there",
        "lr_schedule": "wsd",
        "optimizer": "muon",
        "momentum": 0.5,
        "device": "numpy",
        "dtype": "bfloat16",
        "kernels": "plain",
        "activation_function": "relu",
        "position_embedding": "rotary",
        "bias": False,
        "tie_word_embeddings": False,
        "objective": "mlm",
        "scale_attn_weights": False,
        "scale_attn_by_inverse_layer_idx": True,
        "norm_position": "post",
        "recompute": "block",
        "dropout": 0.25,
        "beta1": 0.5,
        "beta2": 0.75,
        "max_iters": 1000,
        "min_lr": 0.0,
        "eot_in_text": True,
        "tensorboard": True,
    }
    values = {name: examples.get(name, 2) for name in FIELDS}
    argv = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        argv += [f"--no-{flag}" if value is False else f"--{flag}"] + ([] if isinstance(value, bool) else [str(value)])
    from_flags = parse(argv).settings
    assert dataclasses.asdict(from_flags) == values
    from_file = parse(["--config", file(format_settings(from_flags)), "--out-dir", "there"]).settings
    assert from_file == from_flags


@pytest.mark.parametrize("text", ['with "quotes"', "back\\slash", "tab\tnewline\n", "\x7f\x01", "Größe 😀"])
def test_any_text_survives_a_settings_file(file, text):
    settings = TrainSettings(data=text, learning_rate=1e-30, min_lr=5e-324, grad_clip=1e22)
    assert TrainSettings(**read_settings(file(format_settings(settings)))) == settings


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid(preset):
    request = parse(["--preset", preset, "--data", "stdlib"])
    assert request.out_dir.as_posix() == ("out/stdlib" if preset == "default" else f"out/{preset}")
    for name, value in PRESETS[preset].items():
        assert getattr(request.settings, name) == ("stdlib" if name == "data" else value)


def test_a_preset_for_billions_of_tokens_asks_for_them():
    sentence = "--preset gpt2 is for billions of tokens, and the default text has millions: name another (--data)"
    assert refused(["--preset", "gpt2"]) == refused(["--preset", "gpt2", "--init-from", "gpt2"]) == sentence


@pytest.mark.parametrize("preset", ["gpt2", "shakespeare-char-gpu"])
@pytest.mark.parametrize(("max_iters", "warmup"), [(1, 0), (20, 1), (1000, 50)])
def test_the_warm_up_of_a_preset_shrinks_with_the_run(file, preset, max_iters, warmup):
    argv = ["--preset", preset, "--data", "stdlib", "--max-iters", str(max_iters)]
    assert parse(argv).settings.warmup == warmup
    # one that was asked for does not
    asked_for = f"warmup_iters is 2000, expected at most max_iters, which is {max_iters}"
    assert asked_for in refused([*argv, "--warmup-iters", "2000"])
    assert asked_for in refused([*argv, "--config", file("warmup_iters = 2000")])


def test_fine_tuning_has_other_defaults(file, capsys):
    settings = parse(["--init-from", "gpt2"]).settings
    assert (settings.learning_rate, settings.final_lr, settings.warmup, settings.seq_len) == (3e-5, 3e-6, 90, 256)
    assert parse(["--config", file('init_from = "gpt2"')]).settings == settings
    assert "learning_rate = 3e-05\n" in format_settings(settings)
    asked = ["--learning-rate", "1e-4", "--seq-len", "32"]
    settings = parse(["--init-from", "gpt2", *asked]).settings
    assert (settings.learning_rate, settings.seq_len) == (1e-4, 32)
    assert "min_lr is 0.0001, expected at most learning_rate, which is 3e-05" in refused(
        ["--init-from", "gpt2", "--min-lr", "1e-4"]
    )
    with pytest.raises(SystemExit):
        parse(["--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "largest learning rate (default: 0.004, or 3e-05 with --init-from)" in words
    assert "(default: 64, or 256 with --init-from)" in words


def test_other_optimizers_have_other_defaults():
    for optimizer in ("sgd", "momentum"):
        for argv in ([], ["--init-from", "gpt2"]):
            settings = parse(["--optimizer", optimizer, *argv]).settings
            assert settings.learning_rate == BY_OPTIMIZER[optimizer]["learning_rate"]
        assert parse(["--optimizer", optimizer, "--learning-rate", "0.3"]).settings.learning_rate == 0.3
    settings = parse(["--optimizer", "muon"]).settings
    assert (settings.learning_rate, settings.used_muon_lr, settings.used_momentum) == (4e-3, 0.02, 0.95)
    assert parse(["--optimizer", "momentum"]).settings.used_momentum == 0.9
    assert parse(["--optimizer", "muon", "--momentum", "0", "--muon-lr", "1"]).settings.used_momentum == 0


def test_a_default_decay_leaves_room_for_the_warm_up():
    settings = TrainSettings(lr_schedule="wsd", warmup_iters=90, max_iters=100)
    assert (settings.warmup, settings.decay) == (90, 10)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("texts/book.txt", "book"),
        ("texts.v2", "texts.v2"),
        ("..", "parent"),
        (".", "here"),
        ("../here/", "here"),
        ("/", "run"),
        ("none.txt", "none"),
        ("stdlib", "stdlib"),
    ],
)
def test_the_folder_is_named_after_the_data(tmp_path, monkeypatch, data, name):
    here = tmp_path / "parent" / "here"
    (here / "texts").mkdir(parents=True)
    (here / "texts" / "book.txt").write_text("text")
    (here / "texts.v2").mkdir()
    monkeypatch.chdir(here)
    assert parse(["--data", data]).out_dir.as_posix() == f"out/{name}"


def test_what_is_there_is_saved_by_its_full_path(tmp_path, monkeypatch):
    for name in ("book.txt", "gpt2", "stdlib", "cosine"):
        (tmp_path / name).write_text("")
    monkeypatch.chdir(tmp_path)
    text = format_settings(TrainSettings(data="book.txt", vocab="none", init_from="gpt2"))
    assert f'data = "{tmp_path}/book.txt"\n' in text
    assert f'init_from = "{tmp_path}/gpt2"\n' in text
    assert 'vocab = "none"\n' in text
    assert 'lr_schedule = "cosine"\n' in text
    assert 'data = "stdlib"\n' in format_settings(TrainSettings())


def test_the_preset_gpt2_is_the_small_model():
    settings = parse(["--preset", "gpt2", "--data", "stdlib"]).settings
    assert (settings.n_layer, settings.n_head, settings.n_embd, settings.seq_len) == (12, 12, 768, 1024)
    assert settings.batch_size * settings.seq_len * settings.grad_accum == 2**19


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--batchsize", "3"], "--batchsize is not a flag; did you mean --batch-size?"),
        (["--batch-siz=3"], "--batch-siz is not a flag; did you mean --batch-size?"),
        (["--zzz"], "--zzz is not a flag"),
        (["--lr", "1e-3"], "--lr is not a flag; did you mean --learning-rate?"),
        (["my text.txt"], "'my text.txt' belongs to no flag; did you mean --data 'my text.txt'?"),
        (["--batch-size"], "--batch-size: expected one argument"),
        (["--batch-size", "three"], "--batch-size is 'three', expected an integer from 1 to"),
        (["--batch-size", "0"], "--batch-size is 0, expected an integer from 1 to"),
        (["--seq-len", "-1"], "--seq-len is -1, expected an integer from 1 to"),
        (["--max-iters", "1e3"], "--max-iters is '1e3', expected an integer from 1 to"),
        (["--max-iters", "99999999999999999999"], "expected an integer from 1 to 2147483647"),
        (["--learning-rate", "0"], "--learning-rate is 0.0, expected a number above 0"),
        (["--learning-rate", "nan"], "--learning-rate is nan, expected a number above 0"),
        (["--learning-rate", "inf"], "--learning-rate is inf, expected a number above 0"),
        (["--adam-eps", "1e-60"], "--adam-eps is 1e-60, expected a number above 0"),  # 0 in float32
        (["--dropout", "1"], "--dropout is 1.0, expected a number of at least 0 and below 1"),
        (["--beta2", "1"], "--beta2 is 1.0, expected a number of at least 0 and below 1"),
        (["--device", "gpu"], "--device is 'gpu', expected auto, cpu, cuda, cuda-emulated or numpy"),
        (["--data", ""], "--data is '', expected a text that is not empty"),
        (
            ["--preset", "gpt3"],
            "--preset is 'gpt3', expected default, bytes, shakespeare-char, shakespeare-char-gpu or gpt2",
        ),
        (["--min-lr", "1"], "min_lr is 1.0, expected at most learning_rate, which is 0.004"),
        (["--warmup-iters", "9", "--max-iters", "5"], "warmup_iters is 9, expected at most max_iters, which is 5"),
        (["--decay-iters", "9"], "decay_iters belongs to lr_schedule wsd, and lr_schedule is cosine"),
        (["--lr-schedule", "wsd", "--decay-iters", "2000"], "expected together at most max_iters, which is 1800"),
        (["--momentum", "0.5"], "momentum belongs to optimizer momentum or muon, and optimizer is adamw"),
        (["--optimizer", "sgd", "--muon-lr", "1"], "muon_lr belongs to optimizer muon, and optimizer is sgd"),
        (["--optimizer", "adam"], "--optimizer is 'adam', expected adamw, sgd, momentum or muon"),
        (["--resume", "--overwrite"], "--overwrite begins a run again, and --resume goes on with it: leave one out"),
        (["--data", "x" * 5000, "--max-iters", "0"], "--max-iters is 0"),
        (["--resume", "a", "--out-dir", "b"], "--resume names the folder a, and --out-dir names b"),
    ],
)
def test_wrong_flags_get_a_sentence(argv, expected):
    assert expected in refused(argv)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("n_layers = 3", "n_layers is not a setting; did you mean n_layer?"),
        ("lr = 1e-3", "lr is not a setting; did you mean learning_rate?"),
        (f"n_layer = 0x{'f' * 5000}", "n_layer is an enormous int, expected an integer from 1 to"),
        ("data = 1979-05-27", "data is datetime.date(1979, 5, 27), expected a text"),
        ("[model]\nn_layer = 3", "model is not a setting"),
        ("n_layer = 3.0", "n_layer is 3.0, expected an integer from 1 to"),
        ('data = "a\\u0000b"', "data is 'a\\x00b', expected a text that is not empty"),
        ("beta2 = 0.9999999999", "beta2 is 0.9999999999, expected a number of at least 0 and below 1"),  # 1 in float32
        (f"learning_rate = {10**400}", "expected a number above 0"),
        ("seed = 1" + 5000 * "0", "is not TOML"),
        ("eot_in_text = 1", "eot_in_text is 1, expected true or false"),
        ("n_layer = true", "n_layer is True, expected an integer from 1 to"),
        ('n_layer = "3"', "n_layer is '3', expected an integer from 1 to"),
        ("learning_rate = nan", "learning_rate is nan, expected a number above 0"),
        ("learning_rate = true", "learning_rate is True, expected a number above 0"),
        ("data = 3", "data is 3, expected a text that is not empty"),
        ("batch_size = 0", "batch_size is 0, expected an integer from 1 to"),
        ("batch_size = ", "is not TOML"),
        ("batch_size = 1\nbatch-size = 2", "batch-size is there twice"),
    ],
)
def test_wrong_files_get_a_sentence(file, text, expected):
    path = file(text)
    sentence = refused(["--config", path])
    assert sentence.startswith(path)
    assert expected in sentence


def test_a_file_that_cannot_be_read(tmp_path):
    assert "cannot be read" in refused(["--config", str(tmp_path / "none.toml")])
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    assert "is not TOML" in refused(["--config", str(tmp_path / "binary.toml")])


def test_a_byte_order_mark(tmp_path):
    (tmp_path / "bom.toml").write_text("max_iters = 3\n", encoding="utf-8-sig")
    assert parse(["--config", str(tmp_path / "bom.toml")]).settings.max_iters == 3


def test_keys_may_have_dashes(file):
    assert parse(["--config", file("batch-size = 3")]).settings.batch_size == 3


def test_a_resumed_run_starts_from_its_settings(tmp_path):
    saved = TrainSettings(n_layer=3, batch_size=7, min_lr=1e-5)
    (tmp_path / "settings.toml").write_text(format_settings(saved))
    request = parse(["--resume", str(tmp_path), "--max-iters", "3000", "--n-layer", "3"])
    assert request.resume
    assert request.settings == dataclasses.replace(saved, max_iters=3000, warmup_iters=90, out_dir=str(tmp_path))
    assert parse(["--out-dir", str(tmp_path), "--resume"]).settings == parse(["--resume", str(tmp_path)]).settings


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (["--n-layer", "4"], "n_layer"),
        (["--n-embd", "64"], "n_embd"),
        (["--seq-len", "32"], "seq_len"),
        (["--seed", "1"], "seed"),
        (["--init-from", "gpt2"], "init_from"),
        (["--optimizer", "muon"], "optimizer"),
    ],
)
def test_a_resumed_run_keeps_what_makes_it_this_run(tmp_path, argv, name):
    (tmp_path / "settings.toml").write_text(format_settings(TrainSettings(n_layer=3)))
    assert refused(["--resume", str(tmp_path), *argv]).startswith(f"{name} of the run in {tmp_path} is ")


def test_the_warm_up_of_a_resumed_run_stays(tmp_path):
    resume = ["--resume", str(tmp_path), "--max-iters"]
    preset = PRESETS["shakespeare-char-gpu"]
    saved = TrainSettings(**{**preset, "max_iters": 40, "warmup_iters": None})
    (tmp_path / "settings.toml").write_text(format_settings(saved))
    assert parse([*resume, "4000"]).settings.warmup == 2
    assert parse(["--preset", "shakespeare-char-gpu", *resume, "4000"]).settings.warmup == 2
    assert parse([*resume, "1"]).settings.warmup == 2
    assert parse([*resume, "4000", "--warmup-iters", "7"]).settings.warmup == 7
    assert "warmup_iters is 7, expected at most max_iters" in refused([*resume, "4", "--warmup-iters", "7"])


def test_there_must_be_a_run_to_resume(tmp_path):
    assert refused(["--resume", str(tmp_path)]).endswith(
        "holds no run to resume, expected the file settings.toml in it"
    )
    (tmp_path / "settings.toml").write_text("")
    sentence = refused(["--resume", str(tmp_path / "last")])
    assert sentence.endswith(f"expected the file settings.toml in it; did you mean --resume {tmp_path}?")


def test_the_data_of_a_resumed_run_must_be_there(tmp_path):
    (tmp_path / "settings.toml").write_text('data = "gone.txt"')
    sentence = f"gone.txt: the data of the run in {tmp_path} is not there; --data PATH says where it is now"
    assert refused(["--resume", str(tmp_path)]) == sentence
    assert parse(["--resume", str(tmp_path), "--data", "new.txt"]).settings.data == "new.txt"


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    flags = {name: f"no_{name}" if field.default is True else name for name, field in FIELDS.items()}
    assert all("--" + flag.replace("_", "-") in text for flag in flags.values())
    assert text.isascii()  # as narrow a terminal as there is shows it
