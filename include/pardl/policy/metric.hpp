// SPDX-License-Identifier: MIT
/// \file   Which number a policy looks at, and which way is up.
/// \layer  policy (std only).
#pragma once

#include <concepts>
#include <cstddef>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>

#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Whether more is better (accuracy) or less (loss). A wrong guess would stop the wrong run, so there is no default:
/// leaving it out does not compile.
class Goal {
 public:
  template <class Omitted = void>
  Goal() : maximize_(false) {
    static_assert(!std::is_void_v<Omitted>,
                  "pardl: this policy has no default direction; say .goal = pardl::Goal::maximize for an accuracy or "
                  ".goal = pardl::Goal::minimize for a loss.");
  }
  static Goal const maximize;
  static Goal const minimize;

  /// At or beyond `target` in this direction. Never for a value that is not a number.
  [[nodiscard]] constexpr bool reached(double value, double target) const noexcept {
    return maximize_ ? value >= target : value <= target;
  }
  /// Better than `best` by more than `margin`. Equality is no improvement.
  [[nodiscard]] constexpr bool improved(double value, double best, double margin) const noexcept {
    return maximize_ ? value - margin > best : value + margin < best;
  }
  friend constexpr bool operator==(Goal, Goal) noexcept = default;

 private:
  constexpr explicit Goal(bool up) noexcept : maximize_(up) {}
  bool maximize_;
};
inline constexpr Goal Goal::maximize{true};
inline constexpr Goal Goal::minimize{false};

namespace detail {
template <class F>
struct argument_of;  // of a callable with one parameter whose type is spelled out
template <class R, class A>
struct argument_of<R (*)(A)> : std::type_identity<std::remove_cvref_t<A>> {};
template <class R, class A>
struct argument_of<R (*)(A) noexcept> : std::type_identity<std::remove_cvref_t<A>> {};
template <class R, class C, class A>
struct argument_of<R (C::*)(A) const> : std::type_identity<std::remove_cvref_t<A>> {};
template <class R, class C, class A>
struct argument_of<R (C::*)(A) const noexcept> : std::type_identity<std::remove_cvref_t<A>> {};
template <class R, class C>
struct argument_of<R C::*> : std::type_identity<C> {};  // a data member, or a getter without parameters
template <class F>
  requires requires { &F::operator(); }
struct argument_of<F> : argument_of<decltype(&F::operator())> {};

template <class F>
concept reads_a_number = requires(F const& f, typename argument_of<F>::type const& metrics) {
  { std::invoke(f, metrics) } -> std::convertible_to<double>;
};
}  // namespace detail

/// How a policy reads its number out of what observe() is given: a pointer to a data member (`&Metrics::accuracy`), a
/// getter, or a callable; or, when left out, the observed thing is the number itself.
///
/// The metrics' type is erased, so that settings stay plain aggregates that name no type (clang 16 cannot deduce one
/// from designated initialisers) and a metric can be chosen at run time. The price: a metric of another struct is found
/// when the stopper is made for a type (`stopper<Metrics>(…)`), or at the latest at the first observe, not by the
/// compiler.
class Metric {
 public:
  /// The observed thing is the number itself.
  constexpr Metric() noexcept = default;

  template <class F>
    requires(!std::same_as<std::remove_cvref_t<F>, Metric>)
  Metric(F read) {  // NOLINT(google-explicit-constructor): `.metric = &Metrics::loss`
    static_assert(
        detail::reads_a_number<F>,
        "pardl: a metric is a pointer to a member such as &Metrics::accuracy, or a callable whose one parameter "
        "has a type that is spelled out (no auto), and it gives a number.");
    if constexpr (detail::reads_a_number<F>) {
      static_assert(std::is_trivially_copyable_v<F> && sizeof(F) <= sizeof(bytes_) && alignof(F) <= alignof(void*),
                    "pardl: this metric captures too much; capture by reference, or read a member.");
      ::new (static_cast<void*>(bytes_)) F(read);
      reader_ = &table<F>;
    }
  }

  /// Whether a metrics object of this type can be read.
  template <class Metrics>
  [[nodiscard]] constexpr bool reads() const {
    if (reader_ == nullptr) return std::is_arithmetic_v<Metrics>;
    return *reader_->type == typeid(Metrics) || reader_->cast(&raise<Metrics>, nullptr) != nullptr;
  }

  /// \throws ConfigError where the metric belongs to another type.
  template <class Metrics>
  [[nodiscard]] constexpr double operator()(Metrics const& metrics) const {
    if (reader_ == nullptr) {
      if constexpr (std::is_arithmetic_v<Metrics>) return static_cast<double>(metrics);
      throw ConfigError(sentence("early stopping", "a policy without .metric was shown a struct",
                                 "name the number it watches, for instance .metric = &Metrics::loss"));
    }
    void const* object = std::addressof(metrics);
    if (*reader_->type != typeid(Metrics) && (object = reader_->cast(&raise<Metrics>, object)) == nullptr)
      throw ConfigError(sentence("early stopping",
                                 "a policy's .metric belongs to another type than the metrics shown to it",
                                 "show it an object of the struct that the pointer to member names"));
    return reader_->read(bytes_, object);
  }

 private:
  using Raise = void (*)(void const*);
  struct Reader {
    std::type_info const* type;
    double (*read)(std::byte const*, void const*);
    void const* (*cast)(Raise, void const*);  // to the reader's own type, or null where the object is no such thing
  };

  // `&Derived::loss` has the type double Base::* where Base declares loss. With both types erased only a handler can
  // tell that a Derived is a Base; it is asked once per epoch, and only where the types differ. The stand-in for null
  // keeps "is a Base" apart from "is none".
  template <class Metrics>
  static void raise(void const* object) {
    throw static_cast<Metrics const*>(object);
  }
  template <class F>
  static void const* cast_to(Raise raise, void const* object) {
    try {
      raise(object);
    } catch (typename detail::argument_of<F>::type const* found) {
      return object == nullptr ? static_cast<void const*>(&table<F>) : found;
    } catch (...) {
    }
    return nullptr;
  }
  template <class F>
  static double read_as(std::byte const* bytes, void const* object) {
    F const& read = *std::launder(reinterpret_cast<F const*>(bytes));
    return static_cast<double>(std::invoke(read, *static_cast<typename detail::argument_of<F>::type const*>(object)));
  }
  template <class F>
  static constexpr Reader table{&typeid(typename detail::argument_of<F>::type), &read_as<F>, &cast_to<F>};

  Reader const* reader_ = nullptr;
  alignas(void*) std::byte bytes_[4 * sizeof(void*)]{};
};

static_assert(std::is_trivially_copyable_v<Metric>);
static_assert(detail::reads_a_number<double std::pair<int, double>::*> && !detail::reads_a_number<int>);

}  // namespace pardl::inline PARDL_ABI
