// Which instruction sets this library holds, which of them this CPU can run, and which one is used.
#pragma once

#include <vector>

#include "products.h"

namespace slim {

// Fastest first; never empty.
std::vector<const Products*> supported_products();

// The fastest, or the one that the environment variable OPTIMUM_SLIM_ISA names. Throws std::runtime_error where this
// CPU or this library lacks the one named.
const Products& choose_products();

}  // namespace slim
