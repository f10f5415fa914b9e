// SPDX-License-Identifier: MIT
#include "pardl/fed/partition_picture.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "support/sentences.hpp"
#include "support/temporary_folder.hpp"

using namespace pardl::fed;
using pardl::testing::has;
using pardl::testing::read_text;
using pardl::testing::TemporaryFolder;
using pardl::testing::what_of;

namespace {

/// One element of the picture: its attributes, the text in it, and the group's colour if it stands in a group.
struct Element {
  std::string name, text, group_fill;
  std::map<std::string, std::string> attributes;
  [[nodiscard]] double number(std::string const& attribute) const {
    return std::strtod(attributes.at(attribute).c_str(), nullptr);
  }
};

/// Reads our own SVG, strictly: throws where a tag is not closed, an attribute not quoted or a text not escaped.
std::vector<Element> parse(std::string const& svg) {
  std::vector<Element> elements;
  std::vector<std::string> open;
  std::string group_fill;
  auto const require = [](bool holds, char const* what) {
    if (!holds) throw std::runtime_error(what);
  };
  for (std::size_t at = svg.find('\n') + 1; at < svg.size();) {  // behind the XML declaration
    if (svg[at] != '<') {
      std::size_t const end = std::min(svg.find('<', at), svg.size());
      if (!elements.empty()) elements.back().text += svg.substr(at, end - at);
      at = end;
      continue;
    }
    std::size_t const close = svg.find('>', at);
    require(close != std::string::npos, "a tag without an end");
    std::string tag = svg.substr(at + 1, close - at - 1);
    at = close + 1;
    if (tag.front() == '/') {
      require(!open.empty() && open.back() == tag.substr(1), "tags closed in another order");
      if (open.back() == "g") group_fill.clear();
      open.pop_back();
      continue;
    }
    bool const closed = tag.back() == '/';
    if (closed) tag.pop_back();
    Element element;
    std::size_t cursor = tag.find(' ');
    element.name = tag.substr(0, cursor);
    element.group_fill = group_fill;
    while (cursor < tag.size()) {
      std::size_t const equals = tag.find("=\"", cursor);
      require(equals != std::string::npos, "an attribute without quotes");
      std::size_t const end = tag.find('"', equals + 2);
      require(end != std::string::npos, "an attribute without an end");
      element.attributes[tag.substr(cursor + 1, equals - cursor - 1)] = tag.substr(equals + 2, end - equals - 2);
      cursor = end + 1;
    }
    if (element.name == "g") group_fill = element.attributes.at("fill");
    if (!closed) open.push_back(element.name);
    elements.push_back(element);
  }
  require(open.empty(), "a tag is left open");
  return elements;
}

PartitionReport dirichlet_report(std::size_t clients, std::size_t classes, std::size_t samples) {
  std::vector<std::int64_t> labels(samples);
  for (std::size_t i = 0; i < samples; ++i) labels[i] = static_cast<std::int64_t>(i % classes);
  return report_partition(Dirichlet{.alpha = 0.5}.split(labels, clients, 1), labels);
}

double approximate_width(Element const& text) {
  double const size = text.attributes.count("font-size") > 0 ? text.number("font-size") : 12;
  return 0.55 * size * static_cast<double>(text.text.size());
}

}  // namespace

TEST_CASE("every bar is as high as its client's samples, stacked without gaps, inside the axes") {
  struct Shape {
    std::size_t clients, classes, samples;
  };
  for (Shape const& shape : {Shape{1, 1, 9}, Shape{10, 10, 1000}, Shape{100, 62, 10'000}, Shape{200, 10, 60'000}}) {
    CAPTURE(shape.clients);
    auto const report = dirichlet_report(shape.clients, shape.classes, shape.samples);
    auto const elements = parse(to_svg(report));

    // Two ticks of the vertical axis give its scale.
    std::map<double, double> y_of_tick;
    double axis_left = 0, axis_right = 0;
    for (auto const& e : elements) {
      if (e.name == "text" && e.attributes.count("text-anchor") > 0 && e.attributes.at("text-anchor") == "end")
        y_of_tick[std::strtod(e.text.c_str(), nullptr)] = e.number("y") - 4;
      if (e.name == "line" && e.attributes.at("stroke") == "#dddddd") {
        axis_left = e.number("x1");
        axis_right = e.number("x2");
      }
    }
    REQUIRE(y_of_tick.size() >= 2);
    CHECK(y_of_tick.size() <= 8);
    double const floor_y = y_of_tick.at(0), top_y = y_of_tick.rbegin()->second, top_value = y_of_tick.rbegin()->first;
    CHECK(top_value >= static_cast<double>(report.most));
    auto const samples_of = [&](double height) { return height / (floor_y - top_y) * top_value; };

    std::map<double, std::vector<Element>> bars;  // by x
    for (auto const& e : elements)
      if (e.name == "rect" && !e.group_fill.empty()) bars[e.number("x")].push_back(e);
    REQUIRE(bars.size() == shape.clients);
    std::size_t client = 0;
    double before = axis_left;
    for (auto const& [x, pieces] : bars) {
      CHECK(x > before);
      before = x + pieces[0].number("width");
      double bottom = floor_y, height = 0;
      for (auto const& piece : pieces) {
        CHECK(std::abs(piece.number("y") + piece.number("height") - bottom) < 0.021);  // two decimals, twice
        bottom = piece.number("y");
        height += piece.number("height");
      }
      CHECK(samples_of(height) == doctest::Approx(static_cast<double>(report.sizes[client]))
                                      .epsilon(0.01 + 0.5 / static_cast<double>(shape.samples)));
      std::size_t present = 0;
      for (std::size_t c = 0; c < shape.classes; ++c) present += report.count(client, c) > 0;
      CHECK(pieces.size() == present);
      ++client;
    }
    CHECK(before < axis_right + 0.01);
  }
}

TEST_CASE("the legend names every class in the colour of its bars, and colours differ") {
  for (std::size_t const classes : {2U, 10U, 62U, 100U}) {
    auto const report = dirichlet_report(10, classes, classes * 100);
    auto const elements = parse(to_svg(report));
    std::map<std::string, std::string> legend, groups;  // name → colour
    std::set<std::string> colours;
    for (std::size_t i = 0; i < elements.size(); ++i) {
      auto const& e = elements[i];
      if (e.name == "rect" && e.attributes.count("class") > 0 && e.attributes.at("class") == "key") {
        auto name = elements[i + 1].text;
        while (!name.empty() && name.back() == '\n') name.pop_back();
        legend["class " + name] = e.attributes.at("fill");
        colours.insert(e.attributes.at("fill"));
      }
      if (e.name == "title" && !e.group_fill.empty()) {
        auto name = e.text;
        while (!name.empty() && name.back() == '\n') name.pop_back();
        groups[name] = e.group_fill;
      }
    }
    CHECK(legend.size() == classes);
    CHECK(legend == groups);
    CHECK(colours.size() == classes);
  }
}

TEST_CASE("everything lies within the picture, and no two texts of an axis or the legend overlap") {
  for (std::size_t const clients : {3U, 10U, 57U, 100U, 200U, 1000U}) {
    CAPTURE(clients);
    auto const elements = parse(to_svg(dirichlet_report(clients, 62, 62 * clients * 10)));
    double const width = elements[0].number("width"), height = elements[0].number("height");
    std::map<double, std::vector<std::pair<double, double>>> rows;  // y → [from, to] of texts
    for (auto const& e : elements) {
      if (e.name == "rect") {
        double const x = e.attributes.count("x") > 0 ? e.number("x") : 0,
                     y = e.attributes.count("y") > 0 ? e.number("y") : 0;
        CHECK(x >= 0);
        CHECK(y >= 0);
        CHECK(x + e.number("width") <= width + 0.01);
        CHECK(y + e.number("height") <= height + 0.01);
      }
      if (e.name != "text" || e.attributes.count("transform") > 0) continue;
      double const length = approximate_width(e);
      auto const anchor = e.attributes.count("text-anchor") > 0 ? e.attributes.at("text-anchor") : "start";
      double const from = e.number("x") - (anchor == "end" ? length : anchor == "middle" ? length / 2 : 0);
      CHECK(from >= 0);
      CHECK(from + length <= width);
      CHECK(e.number("y") <= height);
      rows[e.number("y")].emplace_back(from, from + length);
    }
    for (auto& [y, spans] : rows) {
      std::sort(spans.begin(), spans.end());
      for (std::size_t i = 1; i < spans.size(); ++i) CHECK(spans[i].first > spans[i - 1].second);
    }
  }
}

TEST_CASE("of more clients than bars the first are shown, and the picture says so; the figures are those of all") {
  auto const report = dirichlet_report(1000, 10, 60'000);
  auto const svg = to_svg(report);
  CHECK(has(svg, ">shown: the first 200 of 1000 clients</text>"));
  CHECK(has(svg, ">1000 clients, 60000 samples of 10 classes; per client "));
  std::set<double> bars;
  for (auto const& e : parse(svg))
    if (e.name == "rect" && !e.group_fill.empty()) bars.insert(e.number("x"));
  CHECK(bars.size() == 200);
  CHECK_FALSE(has(to_svg(dirichlet_report(200, 10, 6000)), "shown: the first"));
}

TEST_CASE("of more classes than colours the rarest share one grey") {
  std::vector<std::int64_t> labels;
  for (std::int64_t c = 0; c < 300; ++c) labels.insert(labels.end(), c < 99 ? 5U : 2U, c);
  auto const svg = to_svg(report_partition(Iid{}.split(labels, 10, 1), labels));
  CHECK(has(svg, "<title>class 98</title>"));
  CHECK_FALSE(has(svg, "<title>class 99</title>"));
  CHECK(has(svg, "<title>class 201 other</title>"));
  double height = 0;
  for (auto const& e : parse(svg))
    if (e.name == "rect" && e.group_fill == "#9a9a9a") height += e.number("height");
  CHECK(height > 0);
}

TEST_CASE("a title of the user's is text, not markup") {
  auto const svg = to_svg(dirichlet_report(10, 3, 300), {.title = "α < 1 & \"skewed\" <b>\n"});
  CHECK(has(svg, ">α &lt; 1 &amp; &quot;skewed&quot; &lt;b&gt;?</text>"));
  CHECK_NOTHROW(parse(svg));
}

TEST_CASE("clients without samples have no bar, and a partition without any has axes") {
  std::vector<std::int64_t> const labels{1, 2};
  auto const some = parse(to_svg(report_partition({{}, {0, 1}, {}}, labels)));
  std::size_t bars = 0;
  for (auto const& e : some) bars += e.name == "rect" && !e.group_fill.empty();
  CHECK(bars == 2);
  CHECK_NOTHROW(parse(to_svg(report_partition({{}, {}}, labels))));
}

TEST_CASE("the picture is written whole under its name, or an error names the path") {
  TemporaryFolder const folder;
  auto const report = dirichlet_report(10, 3, 300);
  write_svg(report, folder / "partition.svg", {.title = "Ten clients"});
  CHECK(read_text(folder / "partition.svg") == to_svg(report, {.title = "Ten clients"}));
  auto const missing = folder / "no" / "partition.svg";
  CHECK(has(what_of<pardl::Error>([&] { write_svg(report, missing); }), missing.string()));
}
