// SPDX-License-Identifier: Apache-2.0
// What the operators of the MindSpore module share: a runner that hands addresses, workspace and stream to a launcher's C ABI.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ms_extension/api.h"

#ifdef ASCEND_DSV4_TWIN
#include "twin/abi.h"
#else
#include "tiling/platform/platform_ascendc.h"
#endif

namespace ascend_dsv4_kernels {

template <typename Params>
using Workspace = size_t (*)(const Params*);
template <typename Params>
using Launch = int (*)(void*, const Params*, void**, void**, void*, size_t);

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
inline uint32_t DtypeCode(const char* op, const ms::Tensor& tensor) {
    switch (tensor.data_type()) {
        case ms::TypeId::kNumberTypeFloat32: return 0;
        case ms::TypeId::kNumberTypeBFloat16: return 1;
        case ms::TypeId::kNumberTypeFloat16: return 2;
        default: throw std::invalid_argument(std::string(op) + ": expected float32, bfloat16 or float16");
    }
}

inline uint32_t Size(const ms::Tensor& tensor, size_t dim) { return static_cast<uint32_t>(tensor.shape().at(dim)); }

/// Called by MindSpore on its launching thread; inputs are contiguous.
template <typename Params>
class Runner : public ms::pynative::PyboostRunner {
public:
    using PyboostRunner::PyboostRunner;

    static void Start(const char* op, Workspace<Params> workspace, Launch<Params> launch, const Params& params,
                      const std::vector<ms::Tensor>& inputs, const std::vector<ms::Tensor>& outputs) {
        auto runner = std::make_shared<Runner>(op);
        runner->workspace_ = workspace, runner->launch_ = launch, runner->params_ = params;
        runner->Run(inputs, outputs);
    }

protected:
    size_t CalcWorkspace() override { return workspace_(&params_); }

    void LaunchKernel() override {
        std::vector<void*> in, out;
        for (const ms::Tensor& tensor : inputs()) in.push_back(tensor.is_defined() ? tensor.GetDataPtr() : nullptr);
        for (const ms::Tensor& tensor : outputs()) out.push_back(tensor.is_defined() ? tensor.GetDataPtr() : nullptr);
#ifdef ASCEND_DSV4_TWIN
        void* target = nullptr;
#else
        void* target = stream();
#endif
        if (launch_(target, &params_, in.data(), out.data(), workspace_ptr(), workspace_(&params_)) != 0) {
#ifdef ASCEND_DSV4_TWIN
            throw std::runtime_error(twin_last_error());
#else
            throw std::runtime_error(op_name() + ": the kernel does not take these sizes");
#endif
        }
    }

private:
    Workspace<Params> workspace_ = nullptr;
    Launch<Params> launch_ = nullptr;
    Params params_ = {};
};

}  // namespace ascend_dsv4_kernels

/// `<op>_launch` and `<op>_workspace` of the kernels' library.
#define ASCEND_DSV4_LAUNCHER(op, Params)                             \
    extern "C" size_t op##_workspace(const Params*);                 \
    extern "C" int op##_launch(void*, const Params*, void**, void**, void*, size_t);
