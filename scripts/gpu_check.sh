#!/usr/bin/env bash
# Everything that only a GPU can tell, in one call of under ten minutes, without a network: docs/performance.md.
#
#   scripts/gpu_check.sh [STAGE...]      stages: build test compare time train sanitizer; all if none is given
#
#   OUT=FOLDER     results: gpu_check.json, gpu_check.txt, a log for each stage; written again after each stage
#                  and each part of the timing                                       (default: out/gpu_check)
#   WHEELS=FOLDER  *.whl of Python packages that are not installed
#   LLMC=FOLDER    llm.c, to be timed too; train_gpt2cu is built where it is not
#   LIMIT=SECONDS  for everything                                                    (default: 570)
#   PYTHON=...     the Python that has torch                                         (default: python3)
#   BUILD=FOLDER   where to build                                                    (default: build/gpu_check)
#   DEVICE=..., QUICK=1    another device and tiny sizes, to try the script itself
#
# Exit status: 0 if every stage is well or skipped, 1 if one failed, 2 if something needed is missing.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
root=$PWD

all=(build test compare time train sanitizer)   # what says most comes first
stages=("${@:-${all[@]}}")
for stage in "${stages[@]}"; do
    [[ " ${all[*]} " == *" $stage "* ]] || { echo "error: $stage is not a stage: ${all[*]}" >&2; exit 2; }
done
limit=${LIMIT:-570}
[[ $limit =~ ^[1-9][0-9]*$ ]] || { echo "error: LIMIT is '$limit', expected a number of seconds" >&2; exit 2; }
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
build=${BUILD:-$root/build/gpu_check}
out=${OUT:-$root/out/gpu_check}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out" || { echo "error: $out: cannot be made" >&2; exit 2; }
out=$(cd "$out" && pwd)
rm -f "$out"/{gpu_check.json,gpu_check.txt} "$out"/*.log
: >"$work/stages.tsv"

# ---- what is needed ----

command -v "$python" >/dev/null || { echo "error: $python: not found; PYTHON names another" >&2; exit 2; }
PATH=$PATH:$(dirname "$(command -v "$python")")   # cmake and ninja may be packages of its environment
export PYTHONPATH=$root PYTHONUNBUFFERED=1
if [[ -n ${WHEELS:-} ]]; then
    "$python" - "$WHEELS" "$work/site" <<'END' || exit 2
import glob, sys, zipfile
wheels = glob.glob(sys.argv[1] + "/*.whl")
if not wheels:
    sys.exit(f"error: WHEELS is {sys.argv[1]}, and there are no wheels in it")
for wheel in wheels:
    with zipfile.ZipFile(wheel) as file:
        file.extractall(sys.argv[2])
END
    PYTHONPATH=$root:$work/site
fi
missing=$("$python" - <<'END'
import importlib, sys
if sys.version_info < (3, 10):
    print("Python 3.10")
names = ["numpy", "cffi", "pycparser", "safetensors", "tiktoken", "tqdm", "matplotlib"]
for name in names + ([] if sys.version_info >= (3, 11) else ["tomli"]):
    try:
        importlib.import_module(name)
    except ImportError:
        print(name)
END
)
if [[ -n $missing ]]; then
    echo "error: $python lacks ${missing//$'\n'/, }: install it, or put its wheel into a folder that WHEELS names" >&2
    exit 2
fi
wanted() { [[ " ${stages[*]} " == *" $1 "* ]]; }
need() { command -v "$1" >/dev/null || { echo "error: $1 was not found; the stage build needs it" >&2; exit 2; }; }
if wanted build; then
    if [[ $device == cuda ]]; then
        [[ -z ${CUDACXX:-} ]] && ! command -v nvcc >/dev/null && PATH=$PATH:/usr/local/cuda/bin
        need "${CUDACXX:-nvcc}"
    fi
    need cmake
    need gcc
fi
# What was built before does for the other stages; PYGPT_LIB_DIR may name it.
if wanted build || [[ -z ${PYGPT_LIB_DIR:-} ]]; then export PYGPT_LIB_DIR=$build/lib; fi

# ---- stages ----

stage_build() {
    local options=("-DPython3_EXECUTABLE=$(command -v "$python")" -DCMAKE_BUILD_TYPE=Release
        "-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$build/lib")
    [[ $device == cuda ]] && options+=(-DPYGPT_CUDA=ON -DPYGPT_CUDA_ARCHITECTURES=native)
    [[ $device == cuda-emulated ]] || options+=(-DPYGPT_EMULATION=OFF)
    command -v ninja >/dev/null && options+=(-G Ninja)
    cmake -S . -B "$build" "${options[@]}" && cmake --build "$build" --parallel "$(nproc)" || return 1
    if [[ $device == cuda && ! -f $build/lib/libpygpt_cuda.so ]]; then
        echo "libpygpt_cuda.so was not built; CMake said above what is missing"
        return 1
    fi
    if [[ -n ${LLMC:-} && ! -x $LLMC/train_gpt2cu ]]; then
        make -C "$LLMC" train_gpt2cu NO_MULTI_GPU=1 NO_USE_MPI=1 || echo "llm.c could not be built; it is left out"
    fi
}

stage_test() {
    # where the device cannot be used, all of its tests are skipped
    "$python" -c 'import sys; from pygpt.model import resolve_device; resolve_device(sys.argv[1])' "$device" || return 1
    if ! "$python" -c 'import pytest' 2>/dev/null; then
        echo "pytest is not installed: scripts/compare.py stands in"
        return 77
    fi
    local processes=()
    "$python" -c 'import xdist' 2>/dev/null && processes=(-n "$(($(nproc) < 8 ? $(nproc) : 8))")
    local chosen=$device
    [[ $device == cuda ]] && chosen="cuda and not emulated"
    "$python" -m pytest -o addopts= -o faulthandler_timeout=60 -q -p no:cacheprovider "${processes[@]}" --maxfail=20 \
        --tb=short -rs -k "$chosen" tests/test_layers.py tests/test_model.py tests/test_cuda.py
}

stage_sanitizer() {
    local tool
    command -v compute-sanitizer >/dev/null || PATH=$PATH:/usr/local/cuda/bin
    command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer was not found"; return 77; }
    for tool in memcheck racecheck; do
        compute-sanitizer --tool "$tool" --error-exitcode 9 "$python" -m pygpt.bench.gpu tiny --device "$device" \
            2>&1 | tee "$work/sanitizer"
        local status=${PIPESTATUS[0]}
        if grep -qi 'device not supported\|unsupported\|unable to \(start\|initialize\)' "$work/sanitizer"; then
            echo "compute-sanitizer does not work on this machine"
            return 77
        fi
        [[ $status == 0 ]] || { echo "$tool: status $status"; return 1; }
        echo "$tool: no errors"
    done
}

stage_compare() {
    local status=0 dtype
    for dtype in float32 bfloat16; do
        "$python" scripts/compare.py --device "$device" --dtype $dtype --json "$work/$dtype.json" || status=1
    done
    return $status
}

stage_train() {
    local sizes=(--n-layer 6 --n-head 6 --n-embd 384 --seq-len 256 --dropout 0.2 --batch-size 64 --max-iters 300
        --eval-interval 100 --recompute none)
    [[ -n ${QUICK:-} ]] && sizes=(--n-layer 1 --n-head 2 --n-embd 16 --seq-len 16 --batch-size 4 --max-iters 5
        --eval-interval 5 --eval-iters 2 --sample-tokens 16)
    # nanoGPT's character model for a GPU, but on texts that are here: the standard library
    "$python" scripts/train.py --device "$device" --dtype bfloat16 --data stdlib "${sizes[@]}" --out-dir "$work/train"
}

stage_time() {
    local options=(--device "$device" --json "$work/times.json" --out "$out"
        --seconds $((seconds > 25 ? seconds - 15 : 10)))
    [[ -n ${LLMC:-} ]] && options+=(--llmc "$LLMC")
    [[ -n ${QUICK:-} ]] && options+=(--quick)
    "$python" -m pygpt.bench.gpu measure "${options[@]}"
}

# run NAME: the stage of that name in a process of its own, which is interrupted when its time is over, and then ended
run() {
    local name=$1 before=$SECONDS status result sentence
    local left=$((limit - 5 - SECONDS))
    [[ $name == time ]] && left=$((left - reserved))
    export seconds=$((${most[$name]} < left ? ${most[$name]} : left))
    if ((seconds < 3)); then
        status=124
        echo "no time was left" >"$out/$name.log"
    else
        export -f "stage_$name"
        timeout -s INT -k 5 "$seconds" bash -c "set -uo pipefail; stage_$name" >"$out/$name.log" 2>&1
        status=$?
    fi
    sentence=$(grep -v '^[[:space:]]*$' "$out/$name.log" | tail -n 1 | tr '\t' ' ' | cut -c1-160)
    case $status in
        0) result=ok ;;
        77) result=skipped ;;
        124 | 137) result="out of time" ;;
        *) result=failed ;;
    esac
    [[ $result == ok || $result == skipped ]] || failed=1
    printf '%s\t%s\t%d\t%s\n' "$name" "$result" $((SECONDS - before)) "$sentence" | tee -a "$work/stages.tsv"
    "$python" -m pygpt.bench.gpu report "$work" "$out" >"$work/report" 2>&1 || failed=1
}

declare -A most=([build]=200 [test]=130 [compare]=40 [time]=$limit [train]=50 [sanitizer]=90)
reserved=0   # of the time for `time`, for what comes after it
wanted train && reserved=$((reserved + 30))
wanted sanitizer && reserved=$((reserved + 60))
failed=0
export root python device build out work LLMC="${LLMC:-}" QUICK="${QUICK:-}"
for stage in "${all[@]}"; do
    wanted "$stage" && run "$stage"
    if [[ $stage == build && $failed == 1 ]]; then
        tail -n 30 "$out/build.log"
        break
    fi
done

cat "$work/report"
exit $failed
