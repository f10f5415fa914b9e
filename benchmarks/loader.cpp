// SPDX-License-Identifier: MIT
/// Images per second that a DataLoader crops, flips and normalises into ready float batches; nothing is trained.
///
/// Its peers are loader.py --style workers (as the guide's script loads) and --style batched (the most of plain
/// PyTorch).
#include <CLI/CLI.hpp>

#include "common.hpp"

int main(int argc, char** argv) {
  return pardl::launch(argc, argv, [](pardl::ProcessGroup world, int count, char** arguments) {
    std::int64_t batch_size = 256, size = 8192;
    int workers = 1, warm_up = 4, timed = 256, repeat = 1;
    bool channels_last = false;
    CLI::App app{"Images per second of the loader alone."};
    app.add_option("--batch-size", batch_size)->capture_default_str();
    app.add_option("--images", size, "in the data set")->capture_default_str();
    app.add_option("--workers", workers, "loader threads")->capture_default_str();
    app.add_flag("--channels-last", channels_last, "deliver that layout");
    app.add_option("--warm-up", warm_up, "batches before the clock starts")->capture_default_str();
    app.add_option("--batches", timed, "batches that are timed")->capture_default_str();
    app.add_option("--repeat", repeat, "number of this repetition, for the CSV line")->capture_default_str();
    CLI11_PARSE(app, count, arguments);

    torch::set_num_threads(1);
    auto const images = benchmarks::synthetic_images(size);
    auto const format = channels_last ? torch::MemoryFormat::ChannelsLast : torch::MemoryFormat::Contiguous;
    pardl::DataLoader const loader{
        images,
        pardl::DistributedSampler{images.size(), world, {.seed = 7}},
        benchmarks::augmentation(images),
        {.batch_size = batch_size, .drop_last = true, .workers = workers, .memory_format = format}};
    benchmarks::Forever batches{loader};
    auto const draw = [&](int number) {
      for (int batch = 0; batch < number; ++batch) (void)batches.next();
    };
    draw(warm_up);
    auto const elapsed = benchmarks::seconds([&] { draw(timed); });
    benchmarks::report("loader", channels_last ? "pardl-channels-last" : "pardl", world.size(),
                       static_cast<double>(timed * batch_size) / elapsed, "images/s", repeat);
    return 0;
  });
}
