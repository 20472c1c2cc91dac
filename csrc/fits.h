// Whether a call is one that the CPU kernels serve as it stands.
#pragma once

#include <pybind11/pybind11.h>

namespace cora {

// True only where every check in cora_kernels/functional.py passes, nothing has to be cast and the batch is padded.
// Asked first, in one call: after a large product the caches are cold, and those checks, in Python, take 70 µs on a
// machine where this takes 10 (a linear of 576 x 576 at 1024 rows: 1.6 ms). Where it is false they decide, and name
// what is wrong. Sequences are tuples or lists.
bool fits(pybind11::handle x, pybind11::handle weights, pybind11::handle lora_as, pybind11::handle lora_bs,
          pybind11::handle biases, pybind11::handle scaling);

}  // namespace cora
