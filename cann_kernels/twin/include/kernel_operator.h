// SPDX-License-Identifier: Apache-2.0
// Stands where the device's header of this name stands: kernel sources include it and are compiled unchanged.
#pragma once

#include "twin/control.h"
#include "twin/cube.h"
#include "twin/reduce.h"
#include "twin/sort.h"
#include "twin/static_tensor.h"
