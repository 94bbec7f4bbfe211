// To be preloaded: tells a torch that was built without CUDA that its accelerator is CUDA, and lets guard.cpp replace its
// hooks. Depends on nothing of torch, since it is loaded before torch.
#include <dlfcn.h>

#include <cstdint>
#include <optional>

#define VISIBLE __attribute__((visibility("default")))

namespace c10 {
enum class DeviceType : int8_t { CPU = 0, CUDA = 1 };
}

namespace at {
struct CUDAHooksInterface;
static const CUDAHooksInterface* replaced = nullptr;

namespace accelerator {
VISIBLE std::optional<c10::DeviceType> getAccelerator(bool) { return c10::DeviceType::CUDA; }
}  // namespace accelerator

namespace detail {
VISIBLE const CUDAHooksInterface& getCUDAHooks() {
  using Get = const CUDAHooksInterface& (*)();
  // RTLD_NEXT does not see torch's own: Python opens its modules RTLD_LOCAL.
  static const Get own = reinterpret_cast<Get>(
      dlsym(dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD), "_ZN2at6detail12getCUDAHooksEv"));
  return replaced ? *replaced : own();
}
}  // namespace detail
}  // namespace at

extern "C" VISIBLE void fake_cuda_hooks(const void* hooks) {
  at::replaced = static_cast<const at::CUDAHooksInterface*>(hooks);
}
