// From a node of the model to a checked Layer.
#pragma once

#include "layer.h"
#include "read_node.h"

namespace slim {

// What the name of an operator tells of its layers.
struct Form {
  Kind kind;
  bool grouped;
  Ending ending;
  Join join;
};

// Both throw ModelError where the node breaks FORMAT.md.

Layer read_layer(const Node& node, const Form& form);

// Weights in blocks of inputs with a scale each.
Layer read_blocked_layer(const Node& node, Ending ending, Join join);

}  // namespace slim
