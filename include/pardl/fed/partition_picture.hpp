// SPDX-License-Identifier: MIT
/// \file   A partition as a picture: one bar per client, stacked by class, as an SVG that needs nothing beside it.
/// \layer  fed (std only).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pardl/fed/partition_report.hpp"
#include "pardl/io/atomic_file.hpp"
#include "pardl/io/text.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI::fed {

struct PartitionPictureOptions {
  std::string title = "Samples per client and class";
  std::size_t clients = 200;  ///< bars: the first so many clients; where there are more, the picture says so
  std::size_t classes = 100;  ///< colours: of more classes the rarest share one grey, called "other"
};

namespace detail {

/// The largest step of 1, 2, 5 times a power of ten, 1 at least, that makes at most `steps` of them cover `range`.
[[nodiscard]] inline std::int64_t nice_step(double range, double steps) {
  std::int64_t step = 1;
  for (int i = 0; static_cast<double>(step) * steps < range; ++i) step = i % 3 == 1 ? step / 2 * 5 : step * 2;
  return step;
}

/// "#rrggbb" of entry `index` of `count`: hues around the circle, neighbours apart in lightness too.
[[nodiscard]] inline std::string class_colour(std::size_t index, std::size_t count) {
  double const hue = 6.0 * static_cast<double>(index) / static_cast<double>(count);
  constexpr double lightnesses[] = {0.46, 0.68, 0.34};
  double const lightness = count > 10 ? lightnesses[index % 3] : lightnesses[index % 2];
  double const chroma = (1 - std::abs(2 * lightness - 1)) * 0.62;
  std::string text = "#";
  for (double const shift : {0.0, 4.0, 2.0}) {  // red, green, blue
    double const at = std::fmod(hue + shift, 6.0);
    double const height = std::clamp(std::abs(at - 3) - 1, 0.0, 1.0);
    auto const value = static_cast<int>(std::lround(255 * (lightness + chroma * (height - 0.5))));
    constexpr std::string_view digits = "0123456789abcdef";
    text += digits[static_cast<std::size_t>(value / 16)];
    text += digits[static_cast<std::size_t>(value % 16)];
  }
  return text;
}

/// Text as XML takes it: markup escaped, control characters (which XML has no way to write) replaced.
[[nodiscard]] inline std::string xml_text(std::string_view raw) {
  std::string text;
  for (char const c : io::printable(raw, true))
    text += c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '&' ? "&amp;" : c == '"' ? "&quot;" : std::string(1, c);
  return text;
}

/// What one colour stands for: a class, or all that share the grey.
struct PictureEntry {
  std::string name;
  std::string colour;
  std::vector<std::size_t> classes;  // positions in the report
};

[[nodiscard]] inline std::vector<PictureEntry> picture_entries(PartitionReport const& report, std::size_t most) {
  std::vector<std::size_t> shown(report.classes.size());
  std::iota(shown.begin(), shown.end(), std::size_t{0});
  std::vector<std::size_t> others;
  if (shown.size() > std::max<std::size_t>(most, 1)) {
    std::vector<std::int64_t> overall(report.classes.size());
    for (std::size_t i = 0; i < report.counts.size(); ++i) overall[i % overall.size()] += report.counts[i];
    std::stable_sort(shown.begin(), shown.end(), [&](std::size_t a, std::size_t b) { return overall[a] > overall[b]; });
    auto const kept = static_cast<std::ptrdiff_t>(std::max<std::size_t>(most, 1) - 1);
    others.assign(shown.begin() + kept, shown.end());
    shown.erase(shown.begin() + kept, shown.end());
    std::sort(shown.begin(), shown.end());
  }
  std::vector<PictureEntry> entries;
  for (std::size_t i = 0; i < shown.size(); ++i)
    entries.push_back({std::to_string(report.classes[shown[i]]), class_colour(i, shown.size()), {shown[i]}});
  if (!others.empty()) {
    auto name = std::to_string(others.size()) + " other";
    entries.push_back({std::move(name), "#9a9a9a", std::move(others)});
  }
  return entries;
}

/// Where things are, in pixels.
struct PictureLayout {
  static constexpr double left = 76, top = 92, height = 380, bottom = 62, row = 16, character = 7;
  double pitch = 0;          ///< from bar to bar
  double plot_width = 0;     ///< of all bars
  double legend_left = 0;    ///< of the first column
  double legend_column = 0;  ///< from column to column
  std::size_t legend_rows = 1;
  double picture_width = 0;
  static constexpr double picture_height = top + height + bottom;

  [[nodiscard]] static double x_of_text(std::size_t characters) { return character * static_cast<double>(characters); }
};

[[nodiscard]] inline PictureLayout lay_out(std::size_t bars, std::vector<PictureEntry> const& entries,
                                           std::size_t longest_line) {
  PictureLayout layout;
  layout.pitch = std::clamp(900 / static_cast<double>(bars), 4.0, 36.0);
  layout.plot_width = layout.pitch * static_cast<double>(bars);
  std::size_t longest_name = 0;
  for (auto const& entry : entries) longest_name = std::max(longest_name, entry.name.size());
  layout.legend_left = layout.left + layout.plot_width + 28;
  layout.legend_column = 20 + layout.x_of_text(longest_name) + 14;
  layout.legend_rows = static_cast<std::size_t>(layout.height / layout.row) - 1;  // one for its heading
  auto const columns = (entries.size() + layout.legend_rows - 1) / layout.legend_rows;
  double const with_legend =
      layout.legend_left + std::max(layout.legend_column * static_cast<double>(columns), layout.x_of_text(7)) + 10;
  layout.picture_width = std::ceil(std::max(with_legend, layout.left + layout.x_of_text(longest_line) + 20));
  return layout;
}

}  // namespace detail

/// The picture: clients from left to right in their order, classes from below in ascending order, axes with their
/// titles, the figures of the report above, a legend at the right. Up to 200 bars (4.5 pixels each) are readable;
/// hovering names the class. \cost at most about 60 bytes per client and class that it has.
[[nodiscard]] inline std::string to_svg(PartitionReport const& report, PartitionPictureOptions const& options = {}) {
  using detail::fixed;
  using std::to_string;
  using Layout = detail::PictureLayout;
  std::size_t const bars = std::min(report.clients(), std::max<std::size_t>(options.clients, 1));
  auto const entries = detail::picture_entries(report, options.classes);
  std::string const sizes_line = to_string(report.clients()) + " clients, " + to_string(report.samples) +
                                 " samples of " + to_string(report.classes.size()) + " classes; per client " +
                                 to_string(report.fewest) + " to " + to_string(report.most) + ", median " +
                                 detail::median_text(report.median);
  std::string const skew_line = "label skew (total variation distance from all labels): mean " +
                                fixed(report.mean_skew, 3) + ", most " + fixed(report.most_skew, 3);
  std::string const cut_line = bars < report.clients() ? "shown: the first " + to_string(bars) + " of " +
                                                             to_string(report.clients()) + " clients"
                                                       : std::string();
  auto const layout = detail::lay_out(
      bars, entries,
      std::max({static_cast<std::size_t>(io::text_width(options.title)) * 5 / 4, sizes_line.size(), skew_line.size()}));

  // The scale: whole samples per tick, the highest tick at or above the highest bar.
  auto const shown_most =
      *std::max_element(report.sizes.begin(), report.sizes.begin() + static_cast<std::ptrdiff_t>(bars));
  std::int64_t const step = detail::nice_step(static_cast<double>(shown_most), 7);
  std::int64_t const scale = std::max<std::int64_t>((shown_most + step - 1) / step, 1) * step;
  double const floor_y = Layout::top + Layout::height;
  auto const height_of = [&](std::int64_t count) {
    return Layout::height * static_cast<double>(count) / static_cast<double>(scale);
  };
  auto const px = [](double value) { return fixed(value, 2); };
  auto const line = [&](double x1, double y1, double x2, double y2, std::string_view colour) {
    return "<line x1=\"" + px(x1) + "\" y1=\"" + px(y1) + "\" x2=\"" + px(x2) + "\" y2=\"" + px(y2) + "\" stroke=\"" +
           std::string(colour) + "\"/>\n";
  };
  auto const words = [&](double x, double y, std::string_view attributes, std::string_view text) {
    return "<text x=\"" + px(x) + "\" y=\"" + px(y) + "\"" + std::string(attributes) + ">" + detail::xml_text(text) +
           "</text>\n";
  };

  std::string const size = "width=\"" + px(layout.picture_width) + "\" height=\"" + px(Layout::picture_height) + "\"";
  std::string svg = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<svg xmlns=\"http://www.w3.org/2000/svg\" " + size +
                    " viewBox=\"0 0 " + px(layout.picture_width) + " " + px(Layout::picture_height) +
                    "\" font-family=\"DejaVu Sans, Arial, sans-serif\" font-size=\"12\" fill=\"#222222\">\n<title>" +
                    detail::xml_text(options.title) + "</title>\n<rect class=\"paper\" " + size +
                    " fill=\"#ffffff\"/>\n";
  svg += words(Layout::left, 28, " font-size=\"16\" font-weight=\"bold\"", options.title);
  svg += words(Layout::left, 47, "", sizes_line);
  svg += words(Layout::left, 63, "", skew_line);
  if (!cut_line.empty()) svg += words(Layout::left, 79, " font-weight=\"bold\"", cut_line);

  double const right = Layout::left + layout.plot_width;
  for (std::int64_t tick = 0; tick <= scale; tick += step) {
    double const y = floor_y - height_of(tick);
    svg += line(Layout::left, y, right, y, tick == 0 ? "#222222" : "#dddddd");
    svg += words(Layout::left - 8, y + 4, " text-anchor=\"end\"", to_string(tick));
  }
  svg += line(Layout::left, Layout::top, Layout::left, floor_y, "#222222");

  double const bar_width = layout.pitch * 0.82;
  std::vector<std::int64_t> stacked(bars);
  for (auto const& entry : entries) {
    svg += "<g fill=\"" + entry.colour + "\"><title>class " + detail::xml_text(entry.name) + "</title>\n";
    for (std::size_t client = 0; client < bars; ++client) {
      std::int64_t count = 0;
      for (std::size_t const c : entry.classes) count += report.count(client, c);
      if (count == 0) continue;
      stacked[client] += count;
      svg += "<rect x=\"" + px(Layout::left + layout.pitch * (static_cast<double>(client) + 0.09)) + "\" y=\"" +
             px(floor_y - height_of(stacked[client])) + "\" width=\"" + px(bar_width) + "\" height=\"" +
             px(height_of(count)) + "\"/>\n";
    }
    svg += "</g>\n";
  }

  double const widest_label = Layout::x_of_text(to_string(bars).size()) + 8;
  std::int64_t const every = detail::nice_step(widest_label / layout.pitch, 1);
  for (std::int64_t client = 0; client < static_cast<std::int64_t>(bars); client += every) {
    double const x = Layout::left + layout.pitch * (static_cast<double>(client) + 0.5);
    svg += line(x, floor_y, x, floor_y + 4, "#222222");
    svg += words(x, floor_y + 18, " text-anchor=\"middle\"", to_string(client));
  }
  svg +=
      words(Layout::left + layout.plot_width / 2, floor_y + 44, " text-anchor=\"middle\" font-size=\"13\"", "client");
  double const middle = Layout::top + Layout::height / 2;
  svg += words(20, middle, " text-anchor=\"middle\" font-size=\"13\" transform=\"rotate(-90 20 " + px(middle) + ")\"",
               "samples");

  svg += words(layout.legend_left, Layout::top + 10, " font-size=\"13\"", "class");
  for (std::size_t i = 0; i < entries.size(); ++i) {
    std::size_t const column = i / layout.legend_rows;
    double const x = layout.legend_left + layout.legend_column * static_cast<double>(column);
    double const y = Layout::top + Layout::row * static_cast<double>(1 + i % layout.legend_rows);
    svg += "<rect class=\"key\" x=\"" + px(x) + "\" y=\"" + px(y) + "\" width=\"12.00\" height=\"12.00\" fill=\"" +
           entries[i].colour + "\"/>\n";
    svg += words(x + 18, y + 10, "", entries[i].name);
  }
  return svg + "</svg>\n";
}

/// Writes the picture under `path`, whole or not at all. \throws Error naming the path and the reason.
inline void write_svg(PartitionReport const& report, std::filesystem::path const& path,
                      PartitionPictureOptions const& options = {}) {
  write_file_atomically(path, to_svg(report, options));
}

}  // namespace pardl::inline PARDL_ABI::fed
