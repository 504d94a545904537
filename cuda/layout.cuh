/* Where activations and their gradients lie in the device's memory, and as what. */
#pragma once

#include "device.cuh"

extern "C" {
#include "../csrc/tensors.h"
}

/* Of an activation or its gradient. Statistics of rows are float32 whatever the activations are. */
DataType activation_type(const Tensor &tensor, DataType type);

/* A gradient that the fused kernels do not keep: that of GELU's output. */
bool is_left_out(const Tensor &tensor, const Activation &activation);

int copy_table(TensorTable *copy, const TensorTable *table);

/* The same table with offsets as on the device, in units of four bytes: bfloat16 takes half the room, and of
 * gradients some share theirs. layout->size becomes the size of all. PYGPT_OK or an error. */
int make_layout(TensorTable *layout, const TensorTable *table, DataType type, bool fast);
