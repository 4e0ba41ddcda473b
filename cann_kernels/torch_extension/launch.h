// SPDX-License-Identifier: Apache-2.0
// What the operators of the extension share: the launchers' C ABI, checks of arguments, and a launch on the current stream.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <torch/library.h>

#ifdef ASCEND_DSV4_TWIN
#include "twin/abi.h"
#else
#include "tiling/platform/platform_ascendc.h"
#include "torch_npu/csrc/core/npu/NPUStream.h"
#include "torch_npu/csrc/framework/OpCommand.h"
#endif

namespace ascend_dsv4_kernels {

using Tensors = std::vector<at::Tensor>;  // one that is not defined is a null address

template <typename Params>
struct Launcher {
    const char* name;
    size_t (*workspace)(const Params*);
    int (*launch)(void*, const Params*, void**, void**, void*, size_t);
};

/// Vector cores of the device; as many as the twin starts by default.
inline uint32_t VectorCores() {
#ifdef ASCEND_DSV4_TWIN
    return 4;
#else
    return platform_ascendc::PlatformAscendCManager::GetInstance()->GetCoreNumAiv();
#endif
}
/// AI Cores, for kernels that use the cube.
inline uint32_t AiCores() { return VectorCores() / 2; }

/// 0 float32, 1 bfloat16, 2 float16: what all kernels call them.
inline uint32_t DtypeCode(const char* op, const at::Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case at::kFloat: return 0;
        case at::kBFloat16: return 1;
        case at::kHalf: return 2;
        default: TORCH_CHECK(false, op, ": got ", tensor.scalar_type(), "; expected float32, bfloat16 or float16");
    }
}

inline uint32_t Size(const at::Tensor& tensor, int64_t dim) { return static_cast<uint32_t>(tensor.size(dim)); }

inline at::Tensor Contiguous(const std::optional<at::Tensor>& tensor) {
    return tensor.has_value() && tensor->defined() ? tensor->contiguous() : at::Tensor();
}

inline void RequireDtype(const char* op, const char* name, const at::Tensor& tensor, at::ScalarType wanted) {
    TORCH_CHECK(!tensor.defined() || tensor.scalar_type() == wanted, op, ": ", name, " is ", tensor.scalar_type(), "; expected ", wanted);
}

/// Everything on one device, and contiguous. Tensors live until the kernel has been queued; the allocator is ordered by stream.
template <typename Params>
void Run(const Launcher<Params>& launcher, const Params& params, const Tensors& inputs, const Tensors& outputs) {
    const at::Device device = outputs.at(0).device();
    for (const Tensors* tensors : {&inputs, &outputs}) {
        for (const at::Tensor& tensor : *tensors) {
            TORCH_CHECK(!tensor.defined() || (tensor.device() == device && tensor.is_contiguous()), launcher.name,
                        ": expected contiguous tensors on ", device);
        }
    }
    const size_t bytes = launcher.workspace(&params);
    const at::Tensor workspace = at::empty({static_cast<int64_t>(bytes)}, outputs.at(0).options().dtype(at::kByte));
    const auto call = [launcher, params, inputs, outputs, workspace, bytes](void* stream) -> int {
        std::vector<void*> in, out;
        for (const at::Tensor& tensor : inputs) in.push_back(tensor.defined() ? tensor.data_ptr() : nullptr);
        for (const at::Tensor& tensor : outputs) out.push_back(tensor.defined() ? tensor.data_ptr() : nullptr);
        return launcher.launch(stream, &params, in.data(), out.data(), workspace.data_ptr(), bytes);
    };
#ifdef ASCEND_DSV4_TWIN
    TORCH_CHECK(call(nullptr) == 0, twin_last_error());
#else
    void* stream = c10_npu::getCurrentNPUStream().stream(false);
    at_npu::native::OpCommand command;
    command.Name(launcher.name);
    command.SetCustomHandler([call, stream]() -> int { return call(stream); });
    command.Run();
#endif
}

}  // namespace ascend_dsv4_kernels

/// `<op>_launch` and `<op>_workspace` of the kernels' library.
#define ASCEND_DSV4_LAUNCHER(op, Params)                                                                        \
    extern "C" size_t op##_workspace(const Params*);                                                            \
    extern "C" int op##_launch(void*, const Params*, void**, void**, void*, size_t);                            \
    static const ascend_dsv4_kernels::Launcher<Params> k_##op = {#op, op##_workspace, op##_launch};

#ifdef ASCEND_DSV4_TWIN
#define ASCEND_DSV4_DEVICE CPU
#else
#define ASCEND_DSV4_DEVICE PrivateUse1
#endif

/// A schema, and one function for the device and for Meta, which ends before it launches anything.
#define ASCEND_DSV4_OP(op, function, schema)                                                                    \
    TORCH_LIBRARY_FRAGMENT(ascend_dsv4_kernels, m) { m.def(schema); }                                           \
    TORCH_LIBRARY_IMPL(ascend_dsv4_kernels, ASCEND_DSV4_DEVICE, m) { m.impl(#op, TORCH_FN(function)); }         \
    TORCH_LIBRARY_IMPL(ascend_dsv4_kernels, Meta, m) { m.impl(#op, TORCH_FN(function)); }
