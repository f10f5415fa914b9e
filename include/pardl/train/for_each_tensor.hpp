// SPDX-License-Identifier: MIT
/// \file   Visits every tensor inside what a forward returns, whatever its shape, so that each can be replaced.
/// \layer  train.
///
/// Looked through without help: torch::Tensor, std::optional, std::pair, std::tuple, std::variant, every range whose
/// elements can be written (vector, array, list, the values of a map or of a torch::OrderedDict), and aggregates of
/// up to twelve fields, nested as deeply as one likes. For any other type write, beside it, in its own namespace:
/// ```
/// template <class F> void for_each_tensor(MyOutput& out, F&& f) { f(out.logits()); f(out.state()); }
/// ```
#pragma once

#include <torch/types.h>

#include <concepts>
#include <cstddef>
#include <optional>
#include <ranges>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <variant>

#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {
namespace detail::visit {

struct Probe {
  void operator()(torch::Tensor&) const {}
};

void for_each_tensor() = delete;  // only argument-dependent lookup shall find the user's function

template <class T>
concept customised = requires(T& value, Probe probe) { for_each_tensor(value, probe); };

template <class T>
concept tensor = std::derived_from<T, torch::Tensor>;

/// Types in which no tensor can hide.
template <class T>
concept leaf = std::is_arithmetic_v<T> || std::is_enum_v<T> || std::is_null_pointer_v<T> || std::is_const_v<T> ||
               std::is_empty_v<T> || std::convertible_to<T&, std::string_view>;

template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;
template <class T>
inline constexpr bool is_variant = false;
template <class... T>
inline constexpr bool is_variant<std::variant<T...>> = true;

template <class T>
concept tuple_like = requires { std::tuple_size<T>::value; };

template <class T>
concept keyed_range = std::ranges::range<T> && requires(std::ranges::range_reference_t<T> item) {
  item.key();
  item.value();
};
template <class T>
concept writable_range = std::ranges::range<T> && std::is_lvalue_reference_v<std::ranges::range_reference_t<T>>;

/// Converts to any field, so that brace-initialisation counts the fields of an aggregate.
template <class Outer>
struct AnyField {
  template <class Field>
    requires(!std::same_as<std::remove_cvref_t<Field>, Outer>)
  operator Field() const;  // NOLINT(google-explicit-constructor): declared only, for counting
};

template <class T, std::size_t... I>
consteval bool takes_fields(std::index_sequence<I...>) {
  return requires { T{(static_cast<void>(I), AnyField<T>{})...}; };
}
inline constexpr std::size_t most_fields = 12;
/// The number of fields of an aggregate; 0 where it has none or more than can be looked through.
template <class T, std::size_t N = most_fields + 1>
consteval std::size_t field_count() {
  if constexpr (N == 0)
    return 0;
  else if constexpr (takes_fields<T>(std::make_index_sequence<N>{}))
    return N > most_fields ? 0 : N;
  else
    return field_count<T, N - 1>();
}

/// Converts to the bases of an aggregate only: they take a place in the braces, but cannot be taken apart with it.
template <class Outer>
struct AnyBase {
  template <class Base>
    requires(std::is_base_of_v<Base, Outer> && !std::same_as<Base, Outer>)
  operator Base() const;  // NOLINT(google-explicit-constructor): declared only
};
template <class T>
concept with_base = requires { T{AnyBase<T>{}}; };

/// Braces around one of the initialisers: a C array takes as many of them as it has elements, or one in braces.
template <class T, std::size_t... Before, std::size_t... After>
consteval bool takes_braced(std::index_sequence<Before...>, std::index_sequence<After...>) {
  return requires {
    T{(static_cast<void>(Before), AnyField<T>{})..., {AnyField<T>{}}, (static_cast<void>(After), AnyField<T>{})...};
  };
}
template <class T, std::size_t N, std::size_t I = 0>
consteval bool has_array() {
  if constexpr (I == N)
    return false;
  else
    return (takes_braced<T>(std::make_index_sequence<I>{}, std::index_sequence<>{}) &&
            !takes_braced<T>(std::make_index_sequence<I>{}, std::make_index_sequence<N - 1 - I>{})) ||
           has_array<T, N, I + 1>();
}

template <class T>
concept aggregate = std::is_class_v<T> && std::is_aggregate_v<T> && (field_count<T>() > 0) && !with_base<T> &&
                    !has_array<T, field_count<T>()>();

/// The fields of an aggregate as a tuple of references.
template <class T>
constexpr auto fields(T& v) {
  constexpr std::size_t n = field_count<T>();
  if constexpr (n == 1) {
    auto& [a] = v;
    return std::tie(a);
  } else if constexpr (n == 2) {
    auto& [a, b] = v;
    return std::tie(a, b);
  } else if constexpr (n == 3) {
    auto& [a, b, c] = v;
    return std::tie(a, b, c);
  } else if constexpr (n == 4) {
    auto& [a, b, c, d] = v;
    return std::tie(a, b, c, d);
  } else if constexpr (n == 5) {
    auto& [a, b, c, d, e] = v;
    return std::tie(a, b, c, d, e);
  } else if constexpr (n == 6) {
    auto& [a, b, c, d, e, f] = v;
    return std::tie(a, b, c, d, e, f);
  } else if constexpr (n == 7) {
    auto& [a, b, c, d, e, f, g] = v;
    return std::tie(a, b, c, d, e, f, g);
  } else if constexpr (n == 8) {
    auto& [a, b, c, d, e, f, g, h] = v;
    return std::tie(a, b, c, d, e, f, g, h);
  } else if constexpr (n == 9) {
    auto& [a, b, c, d, e, f, g, h, i] = v;
    return std::tie(a, b, c, d, e, f, g, h, i);
  } else if constexpr (n == 10) {
    auto& [a, b, c, d, e, f, g, h, i, j] = v;
    return std::tie(a, b, c, d, e, f, g, h, i, j);
  } else if constexpr (n == 11) {
    auto& [a, b, c, d, e, f, g, h, i, j, k] = v;
    return std::tie(a, b, c, d, e, f, g, h, i, j, k);
  } else {
    static_assert(n == 12);
    auto& [a, b, c, d, e, f, g, h, i, j, k, l] = v;
    return std::tie(a, b, c, d, e, f, g, h, i, j, k, l);
  }
}

template <class T>
consteval bool visitable();

template <class Tuple, std::size_t... I>
consteval bool all_visitable(std::index_sequence<I...>) {
  return (visitable<std::remove_reference_t<std::tuple_element_t<I, Tuple>>>() && ...);
}

/// True where every tensor inside a T will be found.
template <class T>
consteval bool visitable() {
  if constexpr (tensor<T> || customised<T> || leaf<T>)
    return true;
  else if constexpr (is_optional<T>)
    return visitable<typename T::value_type>();
  else if constexpr (is_variant<T>)
    return []<class... A>(std::type_identity<std::variant<A...>>) {
      return (visitable<A>() && ...);
    }(std::type_identity<T>{});
  else if constexpr (keyed_range<T>)
    return visitable<std::remove_reference_t<decltype(std::declval<std::ranges::range_reference_t<T>>().value())>>();
  else if constexpr (writable_range<T>)
    return visitable<std::remove_reference_t<std::ranges::range_reference_t<T>>>();
  else if constexpr (std::ranges::range<T>)
    return std::is_arithmetic_v<std::ranges::range_value_t<T>>;  // vector<bool>
  else if constexpr (tuple_like<T>)
    return all_visitable<T>(std::make_index_sequence<std::tuple_size_v<T>>{});
  else if constexpr (aggregate<T>)
    return all_visitable<decltype(fields(std::declval<T&>()))>(std::make_index_sequence<field_count<T>()>{});
  else
    return false;
}

template <class T, class F>
void walk(T& value, F& f) {
  if constexpr (customised<T>) {
    for_each_tensor(value, f);
  } else if constexpr (leaf<T>) {
    // nothing inside
  } else if constexpr (tensor<T>) {
    f(static_cast<torch::Tensor&>(value));
  } else if constexpr (is_optional<T>) {
    if (value) walk(*value, f);
  } else if constexpr (is_variant<T>) {
    std::visit([&f](auto& alternative) { walk(alternative, f); }, value);
  } else if constexpr (keyed_range<T>) {
    for (auto&& item : value) walk(item.value(), f);
  } else if constexpr (writable_range<T>) {
    for (auto& element : value) walk(element, f);
  } else if constexpr (std::ranges::range<T>) {
    // vector<bool>
  } else if constexpr (tuple_like<T>) {
    std::apply([&f](auto&... element) { (walk(element, f), ...); }, value);
  } else if constexpr (aggregate<T>) {
    std::apply([&f](auto&... field) { (walk(field, f), ...); }, fields(value));
  }
}

struct ForEachTensor {
  template <class T, class F>
  void operator()(T& value, F&& f) const {
    static_assert(visitable<T>(),
                  "pardl::for_each_tensor cannot look into this type; write for_each_tensor(T&, f) beside it, in its "
                  "own namespace, and call f on each tensor.");
    walk(value, f);
  }
};

}  // namespace detail::visit

/// Whether every tensor inside a T can be found.
template <class T>
inline constexpr bool tensors_visitable = detail::visit::visitable<T>();

inline namespace customisation {
/// Calls `f(torch::Tensor&)` on each tensor inside `value`, in order.
inline constexpr detail::visit::ForEachTensor for_each_tensor{};
}  // namespace customisation

static_assert(tensors_visitable<torch::Tensor>);
static_assert(tensors_visitable<std::tuple<torch::Tensor, std::tuple<torch::Tensor, std::optional<int>>>>);
static_assert(!tensors_visitable<void*>);

}  // namespace pardl::inline PARDL_ABI
