// SPDX-License-Identifier: MIT
/// \file   One rank's life under any launcher: what it says when it fails, and how it ends without waiting for others.
/// \layer  comm.
#pragma once

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>
#include <cxxabi.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <optional>
#include <string>
#include <string_view>
#include <typeinfo>
#include <utility>

#include "pardl/comm/detail/bounded.hpp"
#include "pardl/comm/detail/error_file.hpp"
#include "pardl/comm/process_group.hpp"
#include "pardl/io/posix.hpp"
#include "pardl/policy/environment.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/policy/whole_number.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail::launching {

/// A type's name as a user writes it.
[[nodiscard]] inline std::string type_name(std::type_info const& type) {
  int status = 0;
  char* const plain = abi::__cxa_demangle(type.name(), nullptr, nullptr, &status);
  std::string const name = status == 0 && plain != nullptr ? plain : type.name();
  std::free(plain);
  return name;
}

/// An exception, in words, with the code that the process is to end with.
struct Cause {
  LastWords words;
  int code = 1;
  bool ours = false;  ///< the message is a sentence of this library already
};

/// The exception that is being handled. ConfigError gives code 2, as wrong usage does everywhere; all others 1.
[[nodiscard]] inline Cause current_cause() {
  Cause cause;
  cause.words.unix_ns = unix_now_ns();
  try {
    throw;
  } catch (Error const& error) {
    cause.ours = true;
    cause.words.message = error.what();
    cause.words.symptom = dynamic_cast<CommError const*>(&error) != nullptr;
    constexpr int usage_code = 2;
    if (dynamic_cast<ConfigError const*>(&error) != nullptr) cause.code = usage_code;
  } catch (c10::Error const& error) {  // its what() carries a backtrace of a page
    cause.words.message = type_name(typeid(error)) + ": " + error.what_without_backtrace();
    cause.words.symptom = dynamic_cast<c10::DistError const*>(&error) != nullptr;
  } catch (std::exception const& error) {
    auto const type = type_name(typeid(error));
    cause.words.symptom = type.starts_with("gloo::");  // its headers are not everywhere, its exceptions are
    cause.words.message = type + ": " + error.what();
  } catch (...) {
    auto const* const type = abi::__cxa_current_exception_type();
    cause.words.message = "an exception of type " + (type != nullptr ? type_name(*type) : std::string("unknown"));
  }
  auto& message = cause.words.message;
  while (!message.empty() && (message.back() == '\n' || message.back() == ' ')) message.pop_back();
  for (char& c : message)
    if (c == '\n' || c == '\r') c = ' ';  // one failure, one line
  return cause;
}

/// The line that a rank prints by itself, with its rank in it.
[[nodiscard]] inline std::string spoken(Cause const& cause, Environment const& env) {
  auto text = cause.words.message;
  auto const who = "rank " + std::to_string(env.rank) + "/" + std::to_string(env.size) + ":";
  if (!cause.ours) return env.size > 1 ? "[launch] " + who + " " + text : "[launch] " + text;
  auto const room_end = text.find("] ");
  if (env.size > 1 && room_end != std::string::npos && text.find(who) == std::string::npos)
    text.insert(room_end + 2, who + " ");
  return text;
}

/// Leaves the cause where a launcher looks for it, or says it if there is none that would.
inline void report_cause(Cause const& cause, Environment const& env) {
  bool const left = write_error_file(env.error_file, cause.words);
  if (left && env.launcher == Launcher::pardl) return;
  std::string const line = spoken(cause, env) + "\n";
  std::fflush(nullptr);
  std::cout.flush();
  (void)io::write_all(STDERR_FILENO, line.data(), line.size());  // at once, so that ranks do not mix their lines
}

/// Ends this process with what it has printed, and without waiting for anything: no destructor of a static object runs,
/// and no thread of a transport is joined.
[[noreturn]] inline void leave(int code) {
  std::cout.flush();
  std::cerr.flush();
  std::clog.flush();
  std::fflush(nullptr);
  std::_Exit(code);
}

/// What a process that pardl::launch started does first.
inline void settle_in(Environment const& env) {
  ::prctl(PR_SET_NAME, ("rank " + std::to_string(env.rank)).c_str());  // what ps, top and gdb show
  struct stat out {};
  if (::fstat(STDOUT_FILENO, &out) == 0 && S_ISFIFO(out.st_mode))
    std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);  // a whole block would come late, and be lost in a crash
  // libgomp read OMP_NUM_THREADS before the fork, when the launcher had not set it yet.
  char const* const threads = std::getenv("PARDL_NUM_THREADS");
  if (threads == nullptr) return;
  if (auto const count = whole_number(threads); count && *count > 0 && *count != at::get_num_threads())
    at::set_num_threads(*count);
}

/// Makes the world, runs `main(world)` in it, and ends it. Returns the process's exit code; a rank of several that
/// fails does not return but leaves, so that it waits for nobody.
/// \param limit  how long the group may take to end after the work is done.
template <class Main>
int run_rank(Environment const& env, InitOptions options, std::chrono::milliseconds limit, Main&& main) {
  if (env.launcher == Launcher::pardl) settle_in(env);
  std::optional<ProcessGroup> world;  // outlives the exception: its end may wait for peers
  int code = 0;
  try {
    options.environment = env;
    world = init(std::move(options));
    code = main(*world);
  } catch (...) {
    auto const cause = current_cause();
    report_cause(cause, env);
    // Where no launcher stops them, ranks that wait for this one hear why.
    if (world && !cause.words.symptom && !env.agent_store) world->abandon(cause.words.message);
    code = cause.code;
  }
  if (env.size == 1) return code;
  if (code != 0) {
    try {  // where a rank serves the store, what was left there is to be read before it goes
      constexpr std::chrono::seconds to_be_read{3};
      if (world && !env.agent_store)
        (void)ends_within(to_be_read, [group = std::exchange(world, std::nullopt)]() mutable { group->shutdown(); });
    } catch (...) {  // it has been said already
    }
    leave(code);
  }
  try {
    if (!ends_within(limit, [group = std::exchange(world, std::nullopt)]() mutable { group->shutdown(); })) leave(code);
  } catch (...) {  // an operation that nobody waited for has failed, or NCCL's last step
    auto const cause = current_cause();
    report_cause(cause, env);
    leave(cause.code);
  }
  return code;
}

}  // namespace pardl::inline PARDL_ABI::detail::launching
