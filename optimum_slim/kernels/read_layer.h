// From a node of the model to a checked Layer.
#pragma once

#include "layer.h"
#include "read_node.h"

namespace slim {

// Both throw ModelError where the node breaks FORMAT.md. The layer borrows the memory of scale and bias.

Layer read_layer(const Node& node, Kind kind, bool grouped, Ending ending);

// Weights in blocks of inputs with a scale each.
Layer read_blocked_layer(const Node& node, Ending ending);

}  // namespace slim
