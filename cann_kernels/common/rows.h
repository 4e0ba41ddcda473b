// SPDX-License-Identifier: Apache-2.0
// What kernels that work on rows share: a core's run of items, and values staged for the scalar unit.
#pragma once

#include "kernel_operator.h"

/// Items [begin, end) of a core: equal runs, in order of the cores; the last ones may be empty.
struct ItemRun {
    uint64_t begin;
    uint64_t end;
};

__aicore__ inline ItemRun RunOfBlock(uint64_t items, uint64_t itemsPerBlock)
{
    const uint64_t begin = (uint64_t)AscendC::GetBlockIdx() * itemsPerBlock;
    const uint64_t end = begin + itemsPerBlock;
    ItemRun run;
    run.begin = begin < items ? begin : items;
    run.end = end < items ? end : items;
    return run;
}

__aicore__ inline uint32_t SmallerOf(uint32_t a, uint32_t b) { return a < b ? a : b; }

/// Everything that `source` has been given before is complete before whatever `target` is given next. `event` is source_target.
template <AscendC::HardEvent event>
__aicore__ inline void Handover(AscendC::TPipe* pipe)
{
    const AscendC::TEventID id = pipe->FetchEventID(event);
    AscendC::SetFlag<event>(id);
    AscendC::WaitFlag<event>(id);
}

/// Copies `count` values to a buffer of which the scalar unit reads them. It may have been reading older ones there.
template <typename T>
__aicore__ inline void StageScalars(const AscendC::LocalTensor<T>& to, const AscendC::GlobalTensor<T>& from, uint32_t count,
                                    AscendC::TPipe* pipe)
{
    Handover<AscendC::HardEvent::S_MTE2>(pipe);
    const AscendC::DataCopyPadExtParams<T> noPad(false, 0, 0, 0);
    AscendC::DataCopyPad(to, from, AscendC::DataCopyExtParams(1, count * (uint32_t)sizeof(T), 0, 0, 0), noPad);
    Handover<AscendC::HardEvent::MTE2_S>(pipe);
}
