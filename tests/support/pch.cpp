// SPDX-License-Identifier: MIT
// Empty: this unit exists so that the precompiled header beside it is built once and reused.
