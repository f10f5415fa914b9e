// SPDX-License-Identifier: MIT
/// \file   What a partition is like: who has how many samples of which class, and how far that is from even.
/// \layer  fed (std only).
///
/// The picture of it is drawn by fed/partition_picture.hpp.
#pragma once

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pardl/fed/partition.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

/// The numbers; made by report_partition().
struct PartitionReport {
  std::vector<std::int64_t> classes;  ///< the distinct labels, ascending
  std::vector<std::int64_t> counts;   ///< [clients x classes] samples
  std::vector<std::int64_t> sizes;    ///< samples of each client
  std::vector<double> skew;           ///< of each client: total variation distance of its labels from all clients'
                                      ///< together, in [0, 1): 0 = the same mix; 0 where it has no samples
  std::int64_t samples = 0;           ///< of all clients
  std::int64_t left_out = 0;          ///< samples that no client has
  std::int64_t fewest = 0;            ///< samples of the smallest client
  std::int64_t most = 0;              ///< samples of the largest client
  double median = 0;                  ///< samples per client; the mean of the middle two where clients are even
  double mean_skew = 0;               ///< over the clients that have samples
  double most_skew = 0;               ///< of the client farthest off

  [[nodiscard]] std::size_t clients() const noexcept { return sizes.size(); }
  [[nodiscard]] std::int64_t count(std::size_t client, std::size_t class_position) const {
    return counts[client * classes.size() + class_position];
  }
};

/// \throws ConfigError for a partition without clients, or one that does not fit the labels (check_partition).
/// \cost clients * classes numbers.
[[nodiscard]] inline PartitionReport report_partition(Partition const& partition,
                                                      std::span<std::int64_t const> labels) {
  if (partition.empty())
    throw ConfigError(sentence("fed", "a report on a partition without clients", "partition the data first"));
  check_partition(partition, labels.size());
  PartitionReport report;
  report.classes.assign(labels.begin(), labels.end());
  std::sort(report.classes.begin(), report.classes.end());
  report.classes.erase(std::unique(report.classes.begin(), report.classes.end()), report.classes.end());
  std::size_t const classes = report.classes.size();
  report.counts.assign(partition.size() * classes, 0);
  std::vector<std::int64_t> overall(classes);
  for (std::size_t client = 0; client < partition.size(); ++client) {
    for (std::int64_t const sample : partition[client]) {
      auto const at =
          std::lower_bound(report.classes.begin(), report.classes.end(), labels[static_cast<std::size_t>(sample)]);
      auto const position = static_cast<std::size_t>(at - report.classes.begin());
      ++report.counts[client * classes + position];
      ++overall[position];
    }
    report.sizes.push_back(static_cast<std::int64_t>(partition[client].size()));
    report.samples += report.sizes.back();
  }
  report.left_out = static_cast<std::int64_t>(labels.size()) - report.samples;

  auto sorted = report.sizes;
  std::sort(sorted.begin(), sorted.end());
  report.fewest = sorted.front();
  report.most = sorted.back();
  report.median = static_cast<double>(sorted[(sorted.size() - 1) / 2] + sorted[sorted.size() / 2]) / 2;

  std::size_t with_samples = 0;
  for (std::size_t client = 0; client < partition.size(); ++client) {
    double distance = 0;
    if (report.sizes[client] > 0) {
      ++with_samples;
      for (std::size_t c = 0; c < classes; ++c)
        distance += std::abs(static_cast<double>(report.count(client, c)) / static_cast<double>(report.sizes[client]) -
                             static_cast<double>(overall[c]) / static_cast<double>(report.samples));
      distance /= 2;
    }
    report.skew.push_back(distance);
    report.mean_skew += distance;
    report.most_skew = std::max(report.most_skew, distance);
  }
  if (with_samples > 0) report.mean_skew /= static_cast<double>(with_samples);
  return report;
}

namespace detail {

/// 12.30 with 2 decimals; always with a point, whatever the locale.
[[nodiscard]] inline std::string fixed(double value, int decimals) {
  char text[64];
  return {text, std::to_chars(text, text + sizeof text, value, std::chars_format::fixed, decimals).ptr};
}

/// 98, 98.5: a median is whole or half.
[[nodiscard]] inline std::string median_text(double median) {
  return fixed(median, median == std::floor(median) ? 0 : 1);
}

[[nodiscard]] inline std::string padded(std::string const& text, std::size_t width) {
  return std::string(text.size() < width ? width - text.size() : 0, ' ') + text;
}

/// "3:12 7:9 0:4 (5 more)": a client's most frequent labels, where there are too many classes for a column each.
[[nodiscard]] inline std::string most_frequent(PartitionReport const& report, std::size_t client, std::size_t shown) {
  std::vector<std::pair<std::int64_t, std::size_t>> present;  // minus the count, so that ties go by label
  for (std::size_t c = 0; c < report.classes.size(); ++c)
    if (auto const count = report.count(client, c); count > 0) present.emplace_back(-count, c);
  std::sort(present.begin(), present.end());
  std::string text;
  for (std::size_t i = 0; i < std::min(shown, present.size()); ++i)
    text.append(i > 0 ? " " : "")
        .append(std::to_string(report.classes[present[i].second]))
        .append(":")
        .append(std::to_string(-present[i].first));
  if (present.size() > shown) text.append(" (").append(std::to_string(present.size() - shown)).append(" more)");
  return text;
}

}  // namespace detail

struct PartitionTextOptions {
  std::size_t clients = 20;  ///< rows of the table: the first so many; how many are left out is said below it
  std::size_t columns = 12;  ///< with up to so many classes a column each, else the most frequent labels per client
};

/// The report as lines of text: what holds for all, then a table with one row per client.
[[nodiscard]] inline std::string to_text(PartitionReport const& report, PartitionTextOptions options = {}) {
  using std::to_string;
  std::string text = to_string(report.clients()) + " clients, " + to_string(report.samples) + " samples of " +
                     to_string(report.classes.size()) + " classes";
  if (report.left_out > 0) text += ", " + to_string(report.left_out) + " samples left out";
  text += "\nsamples per client: fewest " + to_string(report.fewest) + ", median " +
          detail::median_text(report.median) + ", most " + to_string(report.most) + "\nlabel skew: mean " +
          detail::fixed(report.mean_skew, 3) + ", most " + detail::fixed(report.most_skew, 3) +
          " (total variation distance of a client's labels from all labels: 0 = the same mix, 1 = nothing shared)\n";

  bool const in_columns = report.classes.size() <= options.columns;
  std::vector<std::size_t> widths;  // of the class columns
  text += "client  samples   skew";
  if (in_columns) {
    for (std::size_t c = 0; c < report.classes.size(); ++c) {
      auto const name = to_string(report.classes[c]);
      std::size_t width = name.size();
      for (std::size_t client = 0; client < std::min(options.clients, report.clients()); ++client)
        width = std::max(width, to_string(report.count(client, c)).size());
      widths.push_back(width + 2);
      text += detail::padded(name, widths.back());
    }
  } else {
    text += "  label:samples";
  }
  text += '\n';
  for (std::size_t client = 0; client < std::min(options.clients, report.clients()); ++client) {
    text += detail::padded(to_string(client), 6) + detail::padded(to_string(report.sizes[client]), 9) +
            detail::padded(detail::fixed(report.skew[client], 3), 7);
    if (in_columns)
      for (std::size_t c = 0; c < report.classes.size(); ++c)
        text += detail::padded(to_string(report.count(client, c)), widths[c]);
    else
      text += "  " + detail::most_frequent(report, client, 6);
    text += '\n';
  }
  if (report.clients() > options.clients)
    text += "and " + to_string(report.clients() - options.clients) + " more clients\n";
  return text;
}

}  // namespace pardl::inline PARDL_ABI::fed
