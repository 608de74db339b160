// From a node of the model to a checked Layer.
#pragma once

#include <stdexcept>
#include <string>

#include "layer.h"
#include "ort_abi.h"

namespace slim {

// A mistake of the model: its text names the attribute or input, what was found and what was expected.
struct ModelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A status that ONNX Runtime itself gave; whoever catches it hands it on or releases it.
struct RuntimeFailure {
  ort::Status status;
};

template <class... Arguments>
void check(ort::Api api, ort::Entry entry, Arguments... arguments) {
  if (ort::Status status = ort::call(api, entry, arguments...)) throw RuntimeFailure{status};
}

std::vector<int64_t> shape_of(ort::Api api, ort::ConstHandle value, int* element_type = nullptr);

// Throws ModelError where the node breaks FORMAT.md. The layer borrows the memory of scale and bias.
Layer read_layer(ort::Api api, ort::ConstHandle info, Kind kind, bool grouped, Activation activation);

}  // namespace slim
