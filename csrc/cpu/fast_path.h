// The fast path of lora_linear_group: calls that the CPU kernels serve as they stand go from Python straight to C++.
#pragma once

#include <pybind11/pybind11.h>

namespace cora::cpu {

// Returns the tuple of ys; or None, unless every check in cora_kernels/functional.py passes, the batch is padded,
// scaling is a float and nothing has to be cast: Python then decides, and names what is wrong. Sequences are tuples or
// lists.
//
// After a large product the caches hold nothing of the interpreter: the checks and the autograd.Function in Python then
// take 0.5 ms for a forward and backward, of the 3.5 ms that a linear of 576 x 576 takes at 1024 rows.
pybind11::object fast_path_group(pybind11::handle x, pybind11::handle weights, pybind11::handle lora_as,
                                 pybind11::handle lora_bs, pybind11::handle biases, pybind11::handle scaling);

}  // namespace cora::cpu
