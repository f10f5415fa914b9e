// SPDX-License-Identifier: MIT
/// \file   What a comparison shows beside its table: three pictures, and a text whose sentences come from the figures.
#pragma once

#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "compare.hpp"
#include "pardl/io/atomic_file.hpp"

namespace parallel_from_scratch {

/// From scratch beside built in.
inline constexpr std::array<std::pair<char const*, char const*>, 2> pairs{
    {{"param_server", "dp"}, {"ring_all_reduce", "ddp"}}};

/// Told before hours of training, not after.
inline void check_gnuplot() {
  if (std::system("gnuplot --version >/dev/null 2>&1") != 0)
    refuse("--compare draws with gnuplot, which is not here", "install it (Debian: gnuplot-nox)");
}

class Report {
 public:
  explicit Report(Comparison const& comparison) : comparison_(comparison), folder_(comparison.options().out) {}

  void write() const {
    draw("accuracy", accuracy());
    draw("epoch_time", epoch_time());
    draw("scaling", scaling());
    pardl::write_file_atomically(folder_ / "report.md", text());
  }

  [[nodiscard]] std::string text() const {
    auto const& first = comparison_.runs().front();
    auto const& options = comparison_.options();
    std::string md = "# Strategies of data parallelism, compared\n\n" + first.data + ", " +
                     std::to_string(first.images) + " training images, LeNet, " + std::to_string(options.epochs) +
                     " epochs, batches of " + std::to_string(options.batch_size) + " over all workers, " +
                     std::to_string(options.ranks) + " " + (options.device == "cuda" ? "GPUs" : "CPU ranks") +
                     " (of which the parameter server computes on " + std::to_string(options.ranks - 1) + "), " +
                     std::to_string(options.seeds) +
                     " seeds. All strategies take the same batches in the same order.\n";
    md +=
        "\n| strategy | test accuracy | standard error | seconds an epoch | standard error |\n|---|---|---|---|---|\n";
    for (auto const* strategy : strategies) {
      auto const a = comparison_.accuracy(strategy), s = comparison_.seconds(strategy);
      md += std::string("| ") + strategy + " | " + fixed(a.value, 4) + " | " + fixed(a.error, 4) + " | " +
            fixed(s.value, 3) + " | " + fixed(s.error, 3) + " |\n";
    }
    md += "\n## Accuracy\n![test accuracy after each epoch](accuracy.svg)\n\n";
    for (auto const& [scratch, built_in] : pairs) md += accuracy_sentence(scratch, built_in);
    md += "\n## Time of an epoch\n![seconds of an epoch](epoch_time.svg)\n\n";
    for (auto const& [scratch, built_in] : pairs) md += time_sentence(scratch, built_in);
    md += order_sentence();
    md += "\n## Growing training sets\n![seconds of an epoch over training images](scaling.svg)\n\n";
    md += "One run of each size, so without an error:\n";
    for (auto const* strategy : strategies) md += "- " + scaling_sentence(strategy);
    return md;
  }

 private:
  [[nodiscard]] std::string accuracy_sentence(std::string const& scratch, std::string const& built_in) const {
    auto const a = comparison_.accuracy(scratch), b = comparison_.accuracy(built_in);
    double const apart = std::abs(a.value - b.value), error = std::hypot(a.error, b.error);
    return scratch + " reached " + fixed(a.value, 4) + ", " + built_in + " " + fixed(b.value, 4) + ": " +
           (apart <= 2 * error ? "the difference of " + fixed(apart, 4) + " is within two standard errors (" +
                                     fixed(2 * error, 4) + ")"
                               : (a.value > b.value ? scratch : built_in) + " is better by " + fixed(apart, 4) +
                                     ", more than two standard errors (" + fixed(2 * error, 4) + ")") +
           ".\n";
  }
  [[nodiscard]] std::string time_sentence(std::string const& scratch, std::string const& built_in) const {
    auto const a = comparison_.seconds(scratch), b = comparison_.seconds(built_in);
    double const ratio = a.value / b.value;
    std::string const pair = "With " + scratch + " an epoch took " + fixed(a.value, 3) + " s, with " + built_in + " " +
                             fixed(b.value, 3) + " s: ";
    if (std::abs(a.value - b.value) <= 2 * std::hypot(a.error, b.error)) return pair + "no difference beyond chance.\n";
    return pair + (ratio > 1 ? built_in + " was " + fixed(ratio, 2) : scratch + " was " + fixed(1 / ratio, 2)) +
           " times as fast.\n";
  }
  [[nodiscard]] std::string order_sentence() const {
    std::vector<std::string> order(strategies.begin(), strategies.end());
    std::ranges::sort(order, {}, [&](std::string const& name) { return comparison_.seconds(name).value; });
    return "By the means alone, from the fastest to the slowest: " + order[0] + ", " + order[1] + ", " + order[2] +
           ", " + order[3] + ".\n";
  }
  [[nodiscard]] std::string scaling_sentence(std::string const& strategy) const {
    Run const *least = nullptr, *most = nullptr;
    for (auto const& one : comparison_.scaling())
      if (one.strategy == strategy) (least ? most : least) = &one;
    if (most == nullptr) return strategy + ": too few images for a second size.\n";
    double const larger = static_cast<double>(most->images) / static_cast<double>(least->images);
    double const longer = Comparison::usual_seconds(*most) / Comparison::usual_seconds(*least);
    return strategy + ": " + fixed(larger, 1) + " times the images took " + fixed(longer, 1) + " times as long" +
           (longer < 0.9 * larger   ? ", so a part of each epoch's time does not grow with the set.\n"
            : longer > 1.1 * larger ? ", more than in proportion.\n"
                                    : ", in proportion.\n");
  }

  // ---- pictures ----

  [[nodiscard]] std::string accuracy() const {
    int const epochs = comparison_.options().epochs;
    std::string script;
    for (auto const* strategy : strategies) {
      script += std::string("$") + strategy + " << EOD\n";
      for (std::size_t e = 0; e < static_cast<std::size_t>(epochs); ++e) {
        auto const m = comparison_.over_seeds(strategy, [e](Run const& one) { return one.accuracy[e]; });
        script += std::to_string(e + 1) + " " + fixed(m.value, 6) + " " + fixed(m.error, 6) + "\n";
      }
      script += "EOD\n";
    }
    script +=
        "set multiplot layout 1,2\nset xlabel 'epoch'\nset ylabel 'test accuracy'\nset key bottom right\n"
        "set offsets 0, 0, graph 0.1, graph 0.1\nset xrange [0.5:" +
        std::to_string(epochs) + ".5]\nset xtics 1, " + std::to_string(std::max(1, epochs / 10)) + "\n";
    for (auto const& [scratch, built_in] : pairs)
      script += std::string("set title '") + scratch + " and " + built_in + "' noenhanced\nplot $" + scratch +
                " with yerrorlines lw 3 lc rgb '#b2431f' title '" + scratch + "' noenhanced, $" + built_in +
                " with yerrorlines lw 2 dt 2 lc rgb '#1f5fb2' title '" + built_in + "' noenhanced\n";
    return script + "unset multiplot\n";
  }
  [[nodiscard]] std::string epoch_time() const {
    std::string script = "$times << EOD\n";
    for (auto const* strategy : strategies) {
      auto const m = comparison_.seconds(strategy);
      script += std::string(strategy) + " " + fixed(m.value, 6) + " " + fixed(m.error, 6) + "\n";
    }
    return script +
           "EOD\nset title 'Time of an epoch: from scratch (red) and built in (blue)'\nset ylabel 'seconds'\nunset "
           "key\n"
           "set yrange [0:*]\nset boxwidth 0.6\nset style fill solid 0.8\nset xrange [-0.6:3.6]\n"
           "set xtics noenhanced\nplot $times using 0:2:3:(int($0) % 2 ? 0x1f5fb2 : 0xb2431f):xtic(1) with "
           "boxerrorbars lc rgb "
           "variable\n";
  }
  [[nodiscard]] std::string scaling() const {
    std::string script;
    for (auto const* strategy : strategies) {
      script += std::string("$") + strategy + " << EOD\n";
      for (auto const& one : comparison_.scaling())
        if (one.strategy == strategy)
          script += std::to_string(one.images) + " " + fixed(Comparison::usual_seconds(one), 6) + "\n";
      script += "EOD\n";
    }
    script +=
        "set title 'Time of an epoch over the size of the training set'\nset xlabel 'training images'\n"
        "set ylabel 'seconds an epoch'\nset key top left noenhanced\nset xrange [0:*]\nset yrange [0:*]\nplot ";
    // A colour and a line for each of scratch and built in; the second pair is lighter.
    for (std::size_t i = 0; i < strategies.size(); ++i) {
      bool const built_in = i % 2 == 1;
      char const* const colours[] = {"#b2431f", "#1f5fb2", "#e39a7f", "#7fa6d9"};
      script += (i == 0 ? "$" : ", $") + std::string(strategies[i]) + " with linespoints lw 2 ps 1.2 pt " +
                (built_in ? "7 dt 2" : "5 dt 1") + " lc rgb '" + colours[i] + "' title '" + strategies[i] + "'";
    }
    return script + "\n";
  }

  /// As SVG and as PNG; each takes its name when it is whole.
  void draw(std::string const& name, std::string const& script) const {
    for (auto const& [kind, terminal] : {std::pair{"svg", "svg size 960,480 background 'white' font 'sans,13'"},
                                         std::pair{"png", "pngcairo size 960,480 font 'sans,11'"}}) {
      auto const file = folder_ / (name + "." + kind);
      auto const draft = folder_ / ("." + name + "." + kind + ".tmp");
      std::FILE* const gnuplot = ::popen("gnuplot", "w");
      if (gnuplot == nullptr) throw pardl::Error(pardl::sentence("parallel_from_scratch", "gnuplot cannot be started"));
      std::fprintf(gnuplot, "set terminal %s\nset output '%s'\nset grid ytics lc rgb '#d8d8d8'\n%sset output\n",
                   terminal, quoted(draft.string()).c_str(), script.c_str());
      int const status = ::pclose(gnuplot);
      std::error_code error;
      if (status == 0) std::filesystem::rename(draft, file, error);
      if (status != 0 || error) {
        std::error_code ignored;
        std::filesystem::remove(draft, ignored);
        throw pardl::Error(pardl::sentence("parallel_from_scratch", "gnuplot could not draw " + file.string(),
                                           "see above what it said"));
      }
    }
  }
  /// For gnuplot's single quotes.
  [[nodiscard]] static std::string quoted(std::string text) {
    for (std::size_t at = 0; (at = text.find('\'', at)) != std::string::npos; at += 2) text.insert(at, "'");
    return text;
  }

  Comparison const& comparison_;
  std::filesystem::path folder_;
};

}  // namespace parallel_from_scratch
