// SPDX-License-Identifier: Apache-2.0
// Bit 48 of the control register: whether half and bfloat16 results keep infinity and NaN (1) or saturate, NaN becoming 0 (0).
// Documents of the device name both defaults, so a kernel that meets such a result must have set the bit, and puts it back at its end.
#pragma once

#include "twin/core.h"

namespace twin {

/// Applies bit 48 to 16-bit results as IEEE arithmetic gives them.
template <typename T>
void Settle(const Instruction& instruction, uint8_t* results, size_t count) {
    if constexpr (kOneOf<T, half, bfloat16_t>) {
        constexpr uint16_t infinity = std::is_same_v<T, half> ? 0x7c00 : 0x7f80;
        Core& core = instruction.core();
        if (core.infNanSet && core.infNan) return;
        auto* bits = reinterpret_cast<uint16_t*>(results);
        bool any = false;
        for (size_t i = 0; i < count; ++i) any |= (bits[i] & infinity) == infinity;
        if (!any) return;
        instruction.Require(core.infNanSet, "a 16-bit result overflows, is infinite or NaN; what becomes of it depends on bit 48 of the control "
                            "register, whose default differs: call SetCtrlSpr<48, 48>(1) first");
        for (size_t i = 0; i < count; ++i) {
            if ((bits[i] & infinity) != infinity) continue;
            const bool nan = (bits[i] & 0x7fff) != infinity;
            bits[i] = nan ? 0 : static_cast<uint16_t>((bits[i] & 0x8000) | (infinity - 1));
        }
    }
}

}  // namespace twin

namespace AscendC {

template <int8_t startBit, int8_t endBit>
int64_t GetCtrlSpr() {
    static_assert(startBit == 48 && endBit == 48, "the twin knows bit 48 of the control register only");
    return twin::Current().infNan ? 1 : 0;
}

template <int8_t startBit, int8_t endBit>
void SetCtrlSpr(int64_t value, const twin::Where& where = twin::Where::Here()) {
    static_assert(startBit == 48 && endBit == 48, "the twin knows bit 48 of the control register only");
    if (value != 0 && value != 1) twin::Fail("SetCtrlSpr", where, twin::Format("one bit takes 0 or 1, got %lld", static_cast<long long>(value)));
    twin::Current().infNan = value == 1, twin::Current().infNanSet = true;
}

}  // namespace AscendC
