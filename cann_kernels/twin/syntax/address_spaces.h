// SPDX-License-Identifier: Apache-2.0
// Memory qualifiers of the device compiler as clang address spaces, for the syntax check only: it includes this before everything
// else, and twin/types.h then leaves these words alone and takes the 16-bit floats of the compiler.
#pragma once

#define TWIN_ADDRESS_SPACES
#define __gm__ __attribute__((address_space(1)))
#define __cbuf__ __attribute__((address_space(2)))
#define __ca__ __attribute__((address_space(3)))
#define __cb__ __attribute__((address_space(4)))
#define __cc__ __attribute__((address_space(5)))
#define __ubuf__ __attribute__((address_space(6)))
#define __fbuf__ __attribute__((address_space(7)))
#define __biasbuf__ __attribute__((address_space(8)))
