// SPDX-License-Identifier: Apache-2.0
// Memory qualifiers of the device compiler as clang address spaces, for the syntax check only. The executable build of the twin
// defines the same words as nothing, so its own header must define each of them under #ifndef.
#pragma once

#define __gm__ __attribute__((address_space(1)))
#define __cbuf__ __attribute__((address_space(2)))
#define __ca__ __attribute__((address_space(3)))
#define __cb__ __attribute__((address_space(4)))
#define __cc__ __attribute__((address_space(5)))
#define __ubuf__ __attribute__((address_space(6)))
#define __fbuf__ __attribute__((address_space(7)))
#define __biasbuf__ __attribute__((address_space(8)))
