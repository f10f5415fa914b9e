// SPDX-License-Identifier: MIT
/// \file   Rows of numbers combined element by element, in the order of the ranks, whatever the layout.
/// \layer  comm, private.
///
/// Every element is ((x0 ∘ x1) ∘ x2) ∘ …: its bits depend on nothing but the ranks' values. half and bfloat16 are
/// combined in float and rounded once. Loops run over blocks of a fixed size, which g++ and clang turn into vector
/// instructions of whatever processor they compile for.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <c10/util/complex.h>

#include <cstddef>
#include <cstdint>
#include <torch/csrc/distributed/c10d/Types.hpp>
#include <type_traits>

#include "pardl/comm/detail/shm/board.hpp"
#include "pardl/comm/detail/shm/half.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::shm {

/// out[i] = x0[i] ∘ x1[i] ∘ … of two ranks or more; `out` may be one of the rows.
using Combine = void (*)(std::byte* out, std::byte const* const* rows, std::size_t ranks, std::size_t count);

namespace combining {

/// What numbers are added in.
template <class T>
struct accumulator {
  using type = T;
};
template <class T>
  requires(std::is_same_v<T, c10::Half> || std::is_same_v<T, c10::BFloat16>)
struct accumulator<T> {
  using type = float;
};
template <class T>
  requires std::is_integral_v<T>
struct accumulator<T> {  // the same bits, and it may overflow
  using type = std::conditional_t<(sizeof(T) < 8), std::uint32_t, std::uint64_t>;
};

/// Into what is added in, and back.
template <class A, class T>
inline A wide(T x) {
  if constexpr (std::is_same_v<T, c10::Half>)
    return to_float(x);
  else
    return static_cast<A>(x);
}
template <class T, class A>
inline T narrow(A x) {
  if constexpr (std::is_same_v<T, c10::Half>)
    return to_half(x);
  else
    return static_cast<T>(x);
}

/// What most operations do with their result.
struct AsItIs {
  template <class A>
  static A finish(A a, std::size_t) {
    return a;
  }
};
struct Sum : AsItIs {
  template <class A>
  static A apply(A a, A b) {
    return static_cast<A>(a + b);
  }
};
/// The sum, divided where it is, before it is rounded.
struct Mean : Sum {
  template <class A>
  static A finish(A a, std::size_t ranks) {
    if constexpr (requires { typename A::value_type; })  // complex
      return a / static_cast<typename A::value_type>(ranks);
    else
      return a / static_cast<A>(ranks);
  }
};
struct Product : AsItIs {
  template <class A>
  static A apply(A a, A b) {
    return static_cast<A>(a * b);
  }
};
/// A NaN wins, as in torch.minimum and torch.maximum.
struct Min : AsItIs {
  template <class A>
  static A apply(A a, A b) {
    return b < a || b != b ? (a != a ? a : b) : a;
  }
};
struct Max : AsItIs {
  template <class A>
  static A apply(A a, A b) {
    return a < b || b != b ? (a != a ? a : b) : a;
  }
};
struct And : AsItIs {
  template <class A>
  static A apply(A a, A b) {
    return static_cast<A>(a & b);
  }
};
struct Or : AsItIs {
  template <class A>
  static A apply(A a, A b) {
    return static_cast<A>(a | b);
  }
};
struct Xor : AsItIs {
  template <class A>
  static A apply(A a, A b) {
    return static_cast<A>(a ^ b);
  }
};

/// \param ranks  2 or more
template <class T, class F, class A, std::size_t count>
inline void block(T* out, std::byte const* const* in, std::size_t at, std::size_t ranks) {
  alignas(line) A sum[count];
  auto const row = [&](std::size_t r) { return reinterpret_cast<T const*>(in[r]) + at; };
  T const* const first = row(0);
  T const* const second = row(1);
  for (std::size_t i = 0; i < count; ++i) sum[i] = F::template apply<A>(wide<A>(first[i]), wide<A>(second[i]));
  for (std::size_t r = 2; r < ranks; ++r) {
    T const* const next = row(r);
    for (std::size_t i = 0; i < count; ++i) sum[i] = F::template apply<A>(sum[i], wide<A>(next[i]));
  }
  for (std::size_t i = 0; i < count; ++i) out[at + i] = narrow<T>(F::finish(sum[i], ranks));
}

template <class T, class F>
void rows(std::byte* out, std::byte const* const* in, std::size_t ranks, std::size_t count) {
  constexpr bool compares = std::is_same_v<F, Min> || std::is_same_v<F, Max>;
  using A = std::conditional_t<compares && std::is_integral_v<T>, T, typename accumulator<T>::type>;
  constexpr std::size_t large = 2048 / sizeof(A), small = 64 / sizeof(A);
  auto* const to = reinterpret_cast<T*>(out);
  std::size_t i = 0;
  for (; i + large <= count; i += large) block<T, F, A, large>(to, in, i, ranks);
  for (; i + small <= count; i += small) block<T, F, A, small>(to, in, i, ranks);
  for (; i < count; ++i) block<T, F, A, 1>(to, in, i, ranks);
}

template <class T>
Combine arithmetic(c10d::ReduceOp::RedOpType op) {
  using Op = c10d::ReduceOp;
  switch (op) {
    case Op::SUM:
      return rows<T, Sum>;
    case Op::AVG:
      if constexpr (std::is_integral_v<T>)
        return nullptr;
      else
        return rows<T, Mean>;
    case Op::PRODUCT:
      return rows<T, Product>;
    default:
      break;
  }
  if constexpr (requires(T a) { a < a; }) {
    if (op == Op::MIN) return rows<T, Min>;
    if (op == Op::MAX) return rows<T, Max>;
  }
  if constexpr (std::is_integral_v<T>) {
    if (op == Op::BAND) return rows<T, And>;
    if (op == Op::BOR) return rows<T, Or>;
    if (op == Op::BXOR) return rows<T, Xor>;
  }
  return nullptr;
}

/// Truth values: a sum is "any", a product "all", as in torch.
inline Combine logical(c10d::ReduceOp::RedOpType op) {
  using Op = c10d::ReduceOp;
  switch (op) {
    case Op::SUM:
    case Op::MAX:
    case Op::BOR:
      return rows<std::uint8_t, Or>;
    case Op::PRODUCT:
    case Op::MIN:
    case Op::BAND:
      return rows<std::uint8_t, And>;
    case Op::BXOR:
      return rows<std::uint8_t, Xor>;
    default:
      return nullptr;
  }
}

}  // namespace combining

/// Null where these numbers have no such operation.
inline Combine combine_of(c10d::ReduceOp::RedOpType op, c10::ScalarType dtype) {
  using combining::arithmetic;
  switch (dtype) {
    case c10::ScalarType::Float:
      return arithmetic<float>(op);
    case c10::ScalarType::Double:
      return arithmetic<double>(op);
    case c10::ScalarType::Half:
      return arithmetic<c10::Half>(op);
    case c10::ScalarType::BFloat16:
      return arithmetic<c10::BFloat16>(op);
    case c10::ScalarType::Char:
      return arithmetic<std::int8_t>(op);
    case c10::ScalarType::Byte:
      return arithmetic<std::uint8_t>(op);
    case c10::ScalarType::Short:
      return arithmetic<std::int16_t>(op);
    case c10::ScalarType::UInt16:
      return arithmetic<std::uint16_t>(op);
    case c10::ScalarType::Int:
      return arithmetic<std::int32_t>(op);
    case c10::ScalarType::UInt32:
      return arithmetic<std::uint32_t>(op);
    case c10::ScalarType::Long:
      return arithmetic<std::int64_t>(op);
    case c10::ScalarType::UInt64:
      return arithmetic<std::uint64_t>(op);
    case c10::ScalarType::Bool:
      return combining::logical(op);
    case c10::ScalarType::ComplexFloat:
      return arithmetic<c10::complex<float>>(op);
    case c10::ScalarType::ComplexDouble:
      return arithmetic<c10::complex<double>>(op);
    default:
      return nullptr;
  }
}

}  // namespace pardl::inline PARDL_ABI::detail::shm
