// Looks at the CPU at run time: the library itself is built for the oldest CPU of its platform.
#include "dispatch.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#if defined(SLIM_X86)
#include <cpuid.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace slim {

#if defined(SLIM_X86)
extern const Products kAvx512Vnni;
void add_vbmi(Products& products);
extern const Products kAvxVnni;
extern const Products kAvx2;
#endif
#if defined(SLIM_NEON)
extern const Products kNeon;
#endif
extern const Products kPortable;

namespace {

#if defined(SLIM_X86)
// The builtin also asks the operating system (XGETBV) whether it saves the wide registers.
bool has_avx512vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

// Older compilers do not know the name, hence CPUID: leaf 7, part 1, bit 4 of EAX.
bool has_avxvnni() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

// The first CPUs with dot products lack the byte instructions.
const Products& avx512vnni() {
  static const Products products = [] {
    Products made = kAvx512Vnni;
    if (__builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2")) add_vbmi(made);
    return made;
  }();
  return products;
}
#endif

#if defined(SLIM_NEON)
bool has_dot_products() {
#if defined(__APPLE__)
  return true;  // every 64-bit ARM Mac
#elif defined(__linux__)
  return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
  return false;
#endif
}
#endif

}  // namespace

std::vector<const Products*> supported_products() {
  std::vector<const Products*> supported;
#if defined(SLIM_X86)
  if (has_avx512vnni()) supported.push_back(&avx512vnni());
  if (has_avxvnni()) supported.push_back(&kAvxVnni);
  if (has_avx2()) supported.push_back(&kAvx2);
#endif
#if defined(SLIM_NEON)
  if (has_dot_products()) supported.push_back(&kNeon);
#endif
  supported.push_back(&kPortable);
  return supported;
}

const Products& choose_products() {
  const std::vector<const Products*> supported = supported_products();
  const char* name = std::getenv("OPTIMUM_SLIM_ISA");
  if (!name || !*name) return *supported.front();
  std::string names;
  for (const Products* products : supported) {
    if (std::strcmp(products->name, name) == 0) return *products;
    names += (names.empty() ? "" : ", ") + std::string(products->name);
  }
  throw std::runtime_error("environment variable OPTIMUM_SLIM_ISA is '" + std::string(name) +
                           "', expected one that this CPU can run: " + names);
}

}  // namespace slim
