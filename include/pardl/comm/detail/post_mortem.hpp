// SPDX-License-Identifier: MIT
/// \file   From what the ranks left in the store to one sentence: which operation failed, and who had not come.
/// \layer  comm, private. Text only, no thread and no store.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <deque>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/comm/detail/stamp.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::detail {

/// Splits at every occurrence of a character.
inline std::vector<std::string> split_text(std::string_view text, char at) {
  std::vector<std::string> parts;
  for (;;) {
    auto const end = text.find(at);
    parts.emplace_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

template <class Int>
std::optional<Int> to_number(std::string_view text) {
  Int value{};
  auto const result = std::from_chars(text.data(), text.data() + text.size(), value);
  if (result.ec != std::errc{} || result.ptr != text.data() + text.size()) return std::nullopt;
  return value;
}

/// The first failure of a group: whoever writes it first, for all to read.
struct Note {
  int rank = -1;
  bool late = false;   ///< a timeout, and not another failure
  std::string phrase;  ///< "all_reduce #17 (float32[4]) timed out after 30 s"

  [[nodiscard]] std::string encode() const {
    return std::to_string(rank) + "\t" + (late ? "late" : "failed") + "\t" + phrase;
  }
  static std::optional<Note> decode(std::string const& text) {
    auto const parts = split_text(text, '\t');
    if (parts.size() < 3) return std::nullopt;
    auto const rank = to_number<int>(parts[0]);
    if (!rank) return std::nullopt;
    return Note{*rank, parts[1] == "late", parts[2]};
  }
};

/// Where a rank stands: the collectives it has called.
struct Status {
  std::uint64_t issued = 0;                                  ///< collectives called so far
  bool busy = false;                                         ///< in the last one still
  bool left = false;                                         ///< it ended the group in good order
  std::string last;                                          ///< text of the last one
  std::deque<std::pair<std::uint64_t, std::string>> recent;  ///< number and agreement of the last few

  [[nodiscard]] std::string const* at(std::uint64_t number) const {
    for (auto const& [n, text] : recent)
      if (n == number) return &text;
    return nullptr;
  }
  [[nodiscard]] std::string encode(int rank) const {
    std::string text = std::to_string(rank) + "\t" + std::to_string(issued) + "\t" +
                       (left   ? "left"
                        : busy ? "busy"
                               : "idle") +
                       "\t" + last;
    for (auto const& [n, words] : recent) text += "\t" + std::to_string(n) + "\t" + words;
    return text + "\n";
  }
  static std::optional<std::pair<int, Status>> decode(std::string const& line) {
    auto const parts = split_text(line, '\t');
    if (parts.size() < 4) return std::nullopt;
    auto const rank = to_number<int>(parts[0]);
    auto const issued = to_number<std::uint64_t>(parts[1]);
    if (!rank || !issued) return std::nullopt;
    Status status{
        .issued = *issued, .busy = parts[2] == "busy", .left = parts[2] == "left", .last = parts[3], .recent = {}};
    for (std::size_t i = 4; i + 1 < parts.size(); i += 2)
      if (auto const n = to_number<std::uint64_t>(parts[i])) status.recent.emplace_back(*n, parts[i + 1]);
    return std::pair{*rank, std::move(status)};
  }
};

/// What the store told.
struct Findings {
  bool answered = false;  ///< the store spoke at all
  std::string store;      ///< who serves it, for the sentence when it does not: "rank 0", "the launcher"
  std::optional<Note> note;
  std::map<int, Status> ranks;
};

/// "3 (no sign of life)", "2 (last called broadcast #16)".
inline std::string whereabouts(int rank, Findings const& findings) {
  auto const found = findings.ranks.find(rank);
  if (found == findings.ranks.end()) return std::to_string(rank) + " (no sign of life)";
  Status const& status = found->second;
  std::string const which = std::to_string(rank) + " (";
  if (status.left) return which + "has ended)";
  if (status.issued == 0) return which + "has not called any collective)";
  return which + (status.busy ? "is in " : "last called ") + status.last + ")";
}

inline std::string listed(std::vector<std::string> const& items) {
  std::string text;
  for (std::size_t i = 0; i < items.size() && i < 16; ++i) text += (i == 0 ? "" : ", ") + items[i];
  if (items.size() > 16) text += " and " + std::to_string(items.size() - 16) + " more";
  return text;
}

/// How an operation of this rank ended.
struct Ending {
  std::string phrase;  ///< "timed out after 30 s", "failed: Connection closed by peer"; empty: given up, others failed
  bool late = false;
};

/// The whole sentence. `op` is null where this rank was in no operation.
inline std::string post_mortem(Stamp const* op, Ending const& ending, int rank, int size, Findings const& findings) {
  std::string text;
  if (op) text = op->text() + " " + (ending.phrase.empty() ? "was given up" : ending.phrase);
  bool const told = findings.note && findings.note->rank != rank;
  if (told)
    text += std::string(text.empty() ? "" : ": ") + "rank " + std::to_string(findings.note->rank) + " says " +
            findings.note->phrase;
  if (text.empty()) text = ending.phrase;

  if (!findings.answered)
    return sentence("comm", rank, size,
                    text + "; nobody can say which ranks have not come, since the store, served by " + findings.store +
                        ", does not answer",
                    findings.store + " may be stopped or gone: look there first");

  std::vector<std::string> missing, elsewhere;
  if (op && op->collective) {
    for (int r = 0; r < size; ++r) {
      if (r == rank) continue;
      auto const found = findings.ranks.find(r);
      if (found == findings.ranks.end() || found->second.issued < op->number) {
        missing.push_back(whereabouts(r, findings));
      } else if (auto const* theirs = found->second.at(op->number); theirs && *theirs != op->agreement()) {
        elsewhere.push_back(std::to_string(r) + " (" + *theirs + ")");
      }
    }
  } else if (op && op->peer >= 0 && op->peer < size) {
    text += "; rank " + whereabouts(op->peer, findings);
  } else {
    // Nobody waits for a stream, so the operation shows only in how far the ranks have come: the first that one lacks.
    std::uint64_t most = 0, least = std::numeric_limits<std::uint64_t>::max();
    for (auto const& [r, status] : findings.ranks) {
      most = std::max(most, status.issued);
      least = std::min(least, status.issued);
    }
    for (int r = 0; r < size; ++r) {
      auto const found = findings.ranks.find(r);
      if (r != rank && (found == findings.ranks.end() || found->second.issued < most))
        missing.push_back(whereabouts(r, findings));
    }
    for (auto const& [r, status] : findings.ranks)
      if (auto const* lacking = least < most ? status.at(least + 1) : nullptr) {
        text += "; not all ranks have come to " + *lacking;
        break;
      }
  }
  if (!missing.empty()) text += "; ranks that have not come: " + listed(missing);
  if (!elsewhere.empty()) text += "; ranks at another operation: " + listed(elsewhere);

  if (!elsewhere.empty())
    return sentence("comm", rank, size, text, "all ranks must call the same operations, alike and in the same order");
  if (!missing.empty()) return sentence("comm", rank, size, text, "see what those ranks said last, or allow more time");
  if (told) return sentence("comm", rank, size, text, "see what that rank said last");
  return sentence("comm", rank, size, text, "see what the other ranks said last");
}

}  // namespace pardl::inline PARDL_ABI::detail
