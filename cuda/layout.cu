/* Where activations lie in the device's memory; see layout.cuh. */
#include "layout.cuh"

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

static const char GELU_OUTPUT[] = ".mlp.act";

static bool ends_with(const std::string &text, const char *end) {
    const size_t length = strlen(end);
    return text.size() >= length && text.compare(text.size() - length, length, end) == 0;
}

DataType activation_type(const Tensor &tensor, DataType type) {
    const std::string name = tensor.name;
    const bool statistic =
        ends_with(name, ".mean") || ends_with(name, ".rstd") || ends_with(name, ".lse") || name == "losses";
    return statistic ? DataType::float32 : type;
}

/* The gradient with which a gradient shares its memory, because they are equal or, for GELU's output, because the
 * fused kernels leave it out; "" if none. */
static std::string shares_with(const Tensor &tensor, const GPT2Config &config, bool fused_gelu) {
    const bool dropout = config.resid_pdrop > 0.0f;
    const std::string name = tensor.name;
    const struct {
        const char *end, *other;
        bool shared;
    } rules[] = {{".attn.c_proj", ".resid_mid", !dropout},
                 {".attn.resid_dropout", ".resid_mid", true},
                 {".mlp.c_proj", ".resid_post", !dropout},
                 {".mlp.dropout", ".resid_post", true},
                 {GELU_OUTPUT, ".mlp.c_fc", fused_gelu}};
    for (const auto &rule : rules)
        if (rule.shared && ends_with(name, rule.end))
            return name.substr(0, name.size() - strlen(rule.end)) + rule.other;
    return "";
}

int copy_table(TensorTable *copy, const TensorTable *table) {
    const size_t bytes = static_cast<size_t>(table->count) * sizeof(Tensor);
    *copy = *table;
    copy->tensors = static_cast<Tensor *>(malloc(bytes));
    if (!copy->tensors) return fail(PYGPT_ERROR_MEMORY, "no memory for a table of tensors");
    memcpy(copy->tensors, table->tensors, bytes);
    return PYGPT_OK;
}

int make_layout(TensorTable *layout, const TensorTable *table, DataType type, bool fast) {
    const int status = copy_table(layout, table);
    if (status != PYGPT_OK) return status;
    const bool fused_gelu = activation_of(table->config.activation_function, type, fast).fused;
    std::map<int64_t, int64_t> places;   // offset in the table -> offset on the device: blocks may share a copy
    std::map<std::string, int64_t> by_name;
    layout->size = 0;
    for (int64_t i = 0; i < table->count; i++) {
        Tensor &tensor = layout->tensors[i];
        if (table->kind == PYGPT_ACTIVATION_GRADIENT && !shares_with(tensor, table->config, fused_gelu).empty())
            continue;
        const auto [place, is_new] = places.try_emplace(tensor.offset, layout->size);
        tensor.offset = by_name[tensor.name] = place->second;
        if (!is_new) continue;
        const int64_t bytes = tensor.size * static_cast<int64_t>(element_size(activation_type(tensor, type)));
        layout->size += ceil_div<int64_t>(bytes, 256) * 256 / static_cast<int64_t>(sizeof(float));
    }
    if (table->kind != PYGPT_ACTIVATION_GRADIENT) return PYGPT_OK;
    for (int64_t i = 0; i < table->count; i++) {
        const std::string other = shares_with(layout->tensors[i], table->config, fused_gelu);
        if (!other.empty()) layout->tensors[i].offset = by_name[other];
    }
    return PYGPT_OK;
}

bool is_left_out(const Tensor &tensor, const Activation &activation) {
    return activation.fused && ends_with(tensor.name, GELU_OUTPUT);
}
