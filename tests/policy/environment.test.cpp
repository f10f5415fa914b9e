// SPDX-License-Identifier: MIT
#include "pardl/policy/environment.hpp"

#include <doctest/doctest.h>

#include <map>
#include <string>
#include <vector>

namespace {

using Table = std::map<std::string, std::string>;
using pardl::Launcher;

pardl::Environment read(Table const& table) {
  return pardl::read_environment([&](char const* name) -> char const* {
    auto const found = table.find(name);
    return found == table.end() ? nullptr : found->second.c_str();
  });
}

/// The sentence of the ConfigError that reading `table` ends in, or "" if it does not.
std::string refusal(Table const& table) {
  try {
    (void)read(table);
    return "";
  } catch (pardl::ConfigError const& error) {
    return error.what();
  }
}

bool says(std::string const& text, std::vector<std::string> const& parts) {
  for (auto const& part : parts)
    if (text.find(part) == std::string::npos) return false;
  return !text.empty();
}

Table with(Table table, Table const& more) {
  for (auto const& [name, value] : more) table[name] = value;
  return table;
}
Table without(Table table, std::string const& name) {
  table.erase(name);
  return table;
}

Table const torchrun = {{"TORCHELASTIC_RUN_ID", "none"},
                        {"TORCHELASTIC_USE_AGENT_STORE", "True"},
                        {"TORCHELASTIC_ERROR_FILE", "/tmp/error.json"},
                        {"TORCHELASTIC_RESTART_COUNT", "2"},
                        {"TORCHELASTIC_MAX_RESTARTS", "3"},
                        {"RANK", "5"},
                        {"WORLD_SIZE", "8"},
                        {"LOCAL_RANK", "1"},
                        {"LOCAL_WORLD_SIZE", "4"},
                        {"GROUP_RANK", "1"},
                        {"GROUP_WORLD_SIZE", "2"},
                        {"MASTER_ADDR", "node1"},
                        {"MASTER_PORT", "29400"}};

Table const slurm = {{"SLURM_JOB_ID", "4711"},
                     {"SLURM_STEP_ID", "2"},
                     {"SLURM_PROCID", "5"},
                     {"SLURM_NTASKS", "7"},
                     {"SLURM_STEP_NUM_TASKS", "7"},
                     {"SLURM_LOCALID", "1"},
                     {"SLURM_NODEID", "2"},
                     {"SLURM_STEP_NUM_NODES", "4"},
                     {"SLURM_STEP_TASKS_PER_NODE", "2(x3),1"},
                     {"SLURM_STEP_NODELIST", "gpu[03-05,11]"}};

Table const open_mpi = {{"OMPI_COMM_WORLD_RANK", "1"},       {"OMPI_COMM_WORLD_SIZE", "4"},
                        {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                        {"OMPI_COMM_WORLD_NODE_RANK", "1"},  {"PMIX_SERVER_TMPDIR", "/tmp/job"}};

Table const pmi = {{"PMI_RANK", "3"},        {"PMI_SIZE", "4"},           {"MPI_LOCALRANKID", "1"},
                   {"MPI_LOCALNRANKS", "2"}, {"MASTER_ADDR", "10.0.0.1"}, {"MASTER_PORT", "29500"}};

Table const by_hand = {{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "localhost"}, {"MASTER_PORT", "29501"}};

}  // namespace

TEST_CASE("no variables make a world of one") {
  auto const env = read({});
  CHECK(env.launcher == Launcher::none);
  CHECK(env.rank == 0);
  CHECK(env.size == 1);
  CHECK(env.places_known);
  CHECK(read({{"RANK", ""}, {"WORLD_SIZE", ""}, {"SLURM_STEP_ID", ""}}).launcher == Launcher::none);
  CHECK(read({{"MASTER_ADDR", "node1"}, {"MASTER_PORT", "1"}}).size == 1);
}

TEST_CASE("torchrun's variables are read in full") {
  auto const env = read(torchrun);
  CHECK(env.launcher == Launcher::torchrun);
  CHECK(env.rank == 5);
  CHECK(env.size == 8);
  CHECK(env.local_rank == 1);
  CHECK(env.local_size == 4);
  CHECK(env.node_rank == 1);
  CHECK(env.nodes == 2);
  CHECK(env.master_addr == "node1");
  CHECK(env.master_port == 29400);
  CHECK(env.agent_store);
  CHECK(env.error_file == "/tmp/error.json");
  CHECK(env.run_id == "none");
  CHECK(env.restart_count == 2);
  CHECK(env.max_restarts == 3);
  CHECK_FALSE(read(with(torchrun, {{"TORCHELASTIC_USE_AGENT_STORE", "False"}})).agent_store);
}

TEST_CASE("our own launcher is told from torchrun by its run's name") {
  CHECK(read(with(torchrun, {{"PARDL_RUN_ID", "none"}})).launcher == Launcher::pardl);
  CHECK(read(with(torchrun, {{"PARDL_RUN_ID", "an outer one"}})).launcher == Launcher::torchrun);
}

TEST_CASE("torchrun inside a Slurm step or an mpirun wins, whatever these say") {
  CHECK(read(with(slurm, torchrun)).rank == 5);
  CHECK(read(with(slurm, torchrun)).launcher == Launcher::torchrun);
  CHECK(read(with(open_mpi, torchrun)).launcher == Launcher::torchrun);
  CHECK(read(with(pmi, torchrun)).size == 8);
}

TEST_CASE("half-set variables are refused by name") {
  CHECK(says(refusal({{"RANK", "0"}}), {"RANK is set but not WORLD_SIZE"}));
  CHECK(says(refusal({{"WORLD_SIZE", "2"}}), {"WORLD_SIZE is set but not RANK"}));
  CHECK(says(refusal({{"LOCAL_RANK", "0"}}), {"LOCAL_RANK", "not RANK and WORLD_SIZE"}));
  for (auto const* name : {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}) {
    CAPTURE(name);
    CHECK(says(refusal(without(torchrun, name)), {name, "[policy]"}));
  }
  for (auto const* name : {"MASTER_ADDR", "MASTER_PORT"}) {
    CAPTURE(name);
    CHECK(says(refusal(without(by_hand, name)), {name, "rank 1/2"}));
  }
  for (auto const* name :
       {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"}) {
    CAPTURE(name);
    CHECK(says(refusal(without(open_mpi, name)), {name}));
  }
  for (auto const* name : {"PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"}) {
    CAPTURE(name);
    CHECK(says(refusal(without(pmi, name)), {name}));
  }
  CHECK(says(refusal(without(slurm, "SLURM_PROCID")), {"SLURM_PROCID"}));
  CHECK(says(refusal(without(without(slurm, "SLURM_NTASKS"), "SLURM_STEP_NUM_TASKS")), {"SLURM_NTASKS"}));
}

TEST_CASE("what is not a number, or none that can be, is refused with its text") {
  for (auto const* value : {"two", "2x", "2.0", " 2", "0x2", "99999999999", "+2"}) {
    CAPTURE(value);
    CHECK(says(refusal(with(by_hand, {{"RANK", value}})), {std::string("RANK=\"") + value + "\"", "not a number"}));
  }
  CHECK(says(refusal(with(by_hand, {{"RANK", "-1"}})), {"RANK=\"-1\"", "out of range"}));
  CHECK(says(refusal(with(by_hand, {{"WORLD_SIZE", "0"}})), {"WORLD_SIZE=\"0\"", "out of range"}));
  CHECK(says(refusal(with(by_hand, {{"MASTER_PORT", "65536"}})), {"MASTER_PORT=\"65536\"", "65535"}));
  CHECK(says(refusal(with(slurm, {{"SLURM_PROCID", "x"}})), {"SLURM_PROCID"}));
}

TEST_CASE("ranks, places and hosts that contradict each other are refused") {
  CHECK(says(refusal(with(by_hand, {{"RANK", "3"}})), {"RANK=3", "WORLD_SIZE=2"}));
  CHECK(says(refusal(with(torchrun, {{"LOCAL_RANK", "4"}})), {"rank 5/8", "local rank 4 of 4"}));
  CHECK(says(refusal(with(torchrun, {{"LOCAL_WORLD_SIZE", "9"}})), {"9 ranks on this host of 8"}));
  CHECK(says(refusal(with(torchrun, {{"GROUP_RANK", "2"}})), {"host 2 of 2"}));
  CHECK(says(refusal(with(torchrun, {{"GROUP_WORLD_SIZE", "9"}})), {"9 hosts for 8 ranks"}));
  CHECK(says(refusal(with(slurm, {{"SLURM_PROCID", "7"}})), {"SLURM_PROCID=7", "SLURM_STEP_NUM_TASKS=7"}));
  CHECK(says(refusal(with(open_mpi, {{"OMPI_COMM_WORLD_RANK", "4"}})), {"OMPI_COMM_WORLD_RANK=4"}));
  CHECK(says(refusal(with(pmi, {{"PMI_RANK", "4"}})), {"PMI_RANK=4"}));
}

TEST_CASE("plain RANK and WORLD_SIZE leave the places open, unless they are given too") {
  auto const env = read(by_hand);
  CHECK(env.launcher == Launcher::variables);
  CHECK(env.rank == 1);
  CHECK(env.size == 2);
  CHECK_FALSE(env.places_known);
  CHECK_FALSE(env.agent_store);
  auto const placed = read(with(by_hand, {{"LOCAL_RANK", "0"}, {"LOCAL_WORLD_SIZE", "1"}}));
  CHECK(placed.places_known);
  CHECK(placed.local_rank == 0);
  CHECK(placed.nodes == 2);
  CHECK(placed.node_rank == 1);
  auto const half = read(with(by_hand, {{"LOCAL_RANK", "0"}}));
  CHECK_FALSE(half.places_known);
  CHECK(half.local_rank == 0);
  CHECK(read({{"RANK", "0"}, {"WORLD_SIZE", "1"}}).size == 1);
}

TEST_CASE("a Slurm step gives ranks, places, the first host and a port of its own") {
  auto const env = read(slurm);
  CHECK(env.launcher == Launcher::slurm);
  CHECK(env.rank == 5);
  CHECK(env.size == 7);
  CHECK(env.local_rank == 1);
  CHECK(env.local_size == 2);
  CHECK(env.node_rank == 2);
  CHECK(env.nodes == 4);
  CHECK(env.master_addr == "gpu03");
  CHECK(env.master_port > 1024);
  CHECK(env.master_port < 32768);
  auto const last = read(with(slurm, {{"SLURM_PROCID", "6"}, {"SLURM_NODEID", "3"}, {"SLURM_LOCALID", "0"}}));
  CHECK(last.local_size == 1);
  CHECK(last.master_port == env.master_port);
  auto const next_step = read(with(slurm, {{"SLURM_STEP_ID", "3"}}));
  auto const next_job = read(with(slurm, {{"SLURM_JOB_ID", "4712"}}));
  CHECK(next_step.master_port != env.master_port);
  CHECK(next_job.master_port != env.master_port);
  CHECK(next_job.master_port != next_step.master_port);
  auto const asked = read(with(slurm, {{"MASTER_ADDR", "ib0.gpu03"}, {"MASTER_PORT", "12345"}}));
  CHECK(asked.master_addr == "ib0.gpu03");
  CHECK(asked.master_port == 12345);
}

TEST_CASE("a Slurm step on one host meets on loopback") {
  auto const env = read({{"SLURM_JOB_ID", "1"},
                         {"SLURM_STEP_ID", "0"},
                         {"SLURM_PROCID", "1"},
                         {"SLURM_NTASKS", "2"},
                         {"SLURM_LOCALID", "1"},
                         {"SLURM_NNODES", "1"},
                         {"SLURM_STEP_NODELIST", "login"}});
  CHECK(env.master_addr == "127.0.0.1");
  CHECK(env.local_size == 2);
  CHECK(env.local_rank == 1);
}

TEST_CASE("the step's own numbers count, not those of the job around it") {
  auto const env = read(with(slurm, {{"SLURM_NTASKS", "16"}, {"SLURM_NNODES", "9"}, {"SLURM_TASKS_PER_NODE", "16"}}));
  CHECK(env.size == 7);
  CHECK(env.nodes == 4);
  CHECK(env.local_size == 2);
}

TEST_CASE("a layout that does not add up leaves the places open") {
  auto const env = read(with(slurm, {{"SLURM_STEP_TASKS_PER_NODE", "2(x9)"}}));
  CHECK(env.size == 7);
  CHECK_FALSE(env.places_known);
}

TEST_CASE("a batch script, an allocation and Slurm's own steps are not ranks") {
  CHECK(read(without(slurm, "SLURM_STEP_ID")).launcher == Launcher::none);
  for (auto const* step : {"4294967291", "4294967292", "4294967290", "batch", "extern", "interactive"}) {
    CAPTURE(step);
    CHECK(read(with(slurm, {{"SLURM_STEP_ID", step}})).size == 1);
  }
}

TEST_CASE("job scripts may export what agrees with srun, and not what contradicts it") {
  Table const task = with(slurm, {{"MASTER_ADDR", "gpu03"}, {"MASTER_PORT", "29500"}});
  CHECK(read(with(task, {{"WORLD_SIZE", "7"}})).launcher == Launcher::slurm);
  CHECK(read(with(task, {{"RANK", "5"}, {"WORLD_SIZE", "7"}})).launcher == Launcher::variables);
  CHECK(says(refusal(with(task, {{"RANK", "0"}, {"WORLD_SIZE", "1"}})),
             {"RANK=0", "WORLD_SIZE=1", "contradicts Slurm", "rank 5 of 7"}));
  CHECK(says(refusal(with(task, {{"RANK", "0"}, {"WORLD_SIZE", "7"}})), {"contradicts"}));
  CHECK(says(refusal(with(task, {{"RANK", "0"}})), {"contradicts"}));
  CHECK(says(refusal(with(task, {{"WORLD_SIZE", "4"}})), {"contradicts"}));
  // A script in each task that starts four ranks each.
  auto const script = read(with(task, {{"RANK", "20"}, {"WORLD_SIZE", "28"}}));
  CHECK(script.rank == 20);
  CHECK(script.launcher == Launcher::variables);
  CHECK(says(refusal(with(open_mpi, {{"RANK", "0"}, {"WORLD_SIZE", "1"}})), {"contradicts Open MPI"}));
}

TEST_CASE("Open MPI's ranks on one host meet in the job's folder") {
  auto const env = read(open_mpi);
  CHECK(env.launcher == Launcher::open_mpi);
  CHECK(env.rank == 1);
  CHECK(env.size == 4);
  CHECK(env.local_rank == 1);
  CHECK(env.local_size == 4);
  CHECK(env.nodes == 1);
  CHECK(env.node_rank == 0);
  CHECK(env.rendezvous_folder == "/tmp/job");
  auto const asked = read(with(open_mpi, {{"MASTER_ADDR", "127.0.0.1"}, {"MASTER_PORT", "29500"}}));
  CHECK(asked.rendezvous_folder.empty());
  CHECK(asked.master_port == 29500);
}

TEST_CASE("Open MPI on several hosts, or without a folder, asks for an address") {
  Table const hosts = with(open_mpi, {{"OMPI_COMM_WORLD_RANK", "3"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}});
  CHECK(says(refusal(hosts), {"rank 3/4", "MASTER_ADDR", "-x MASTER_ADDR"}));
  CHECK(says(refusal(without(open_mpi, "PMIX_SERVER_TMPDIR")), {"MASTER_ADDR"}));
  CHECK(says(refusal(with(hosts, {{"MASTER_ADDR", "a"}})), {"MASTER_PORT is not set"}));
  auto const env = read(with(hosts, {{"MASTER_ADDR", "a"}, {"MASTER_PORT", "29500"}}));
  CHECK(env.nodes == 2);
  CHECK(env.node_rank == 1);
  CHECK(read(with(open_mpi, {{"OMPI_COMM_WORLD_RANK", "0"},
                             {"OMPI_COMM_WORLD_SIZE", "1"},
                             {"OMPI_COMM_WORLD_LOCAL_RANK", "0"},
                             {"OMPI_COMM_WORLD_LOCAL_SIZE", "1"},
                             {"PMIX_SERVER_TMPDIR", ""}}))
            .size == 1);
}

TEST_CASE("mpirun inside a Slurm job is believed, and not the srun that started its helpers") {
  CHECK(read(with(slurm, open_mpi)).launcher == Launcher::open_mpi);
  CHECK(read(with(slurm, pmi)).launcher == Launcher::pmi);
}

TEST_CASE("srun with PMI gives Slurm's variables, which say more") {
  auto const env = read(with(slurm, {{"PMI_RANK", "5"}, {"PMI_SIZE", "7"}}));
  CHECK(env.launcher == Launcher::slurm);
  CHECK(env.local_size == 2);
}

TEST_CASE("PMI's ranks take their places where the library gives them, and an address from the user") {
  auto const env = read(pmi);
  CHECK(env.launcher == Launcher::pmi);
  CHECK(env.rank == 3);
  CHECK(env.size == 4);
  CHECK(env.local_rank == 1);
  CHECK(env.local_size == 2);
  CHECK(env.nodes == 2);
  CHECK(env.places_known);
  CHECK(env.master_addr == "10.0.0.1");
  CHECK(says(refusal(without(pmi, "MASTER_PORT")), {"MASTER_PORT is not set", "mpiexec"}));
  CHECK_FALSE(read(without(without(pmi, "MPI_LOCALRANKID"), "MPI_LOCALNRANKS")).places_known);
  auto const mvapich = read(with(without(without(pmi, "MPI_LOCALRANKID"), "MPI_LOCALNRANKS"),
                                 {{"MV2_COMM_WORLD_LOCAL_RANK", "0"}, {"MV2_COMM_WORLD_LOCAL_SIZE", "4"}}));
  CHECK(mvapich.local_size == 4);
}

TEST_CASE("Slurm's notations are expanded, and nonsense is not") {
  using pardl::detail::first_host;
  using pardl::detail::tasks_per_node;
  CHECK(tasks_per_node("2(x3),1").value() == std::vector<int>{2, 2, 2, 1});
  CHECK(tasks_per_node("4").value() == std::vector<int>{4});
  CHECK(tasks_per_node("1,2,3(x2)").value() == std::vector<int>{1, 2, 3, 3});
  for (auto const* text : {"", "2(x", "2(x)", "x", "2,", "2(x0)", "2(x3)1", "1(x999999999)"}) {
    CAPTURE(text);
    CHECK_FALSE(tasks_per_node(text).has_value());
  }
  CHECK(first_host("node7") == "node7");
  CHECK(first_host("node7,node9") == "node7");
  CHECK(first_host("gpu[03-07,11],login2") == "gpu03");
  CHECK(first_host("gpu[11,03-07]") == "gpu11");
  CHECK(first_host("rack[2-3]-node[08-09].local,x") == "rack2-node08.local");
  CHECK(first_host("").empty());
}

TEST_CASE("neighbouring jobs and steps never share a port") {
  std::map<int, std::string> owner;
  int shared = 0;
  for (std::uint64_t job = 100'000; job < 100'050; ++job)
    for (std::uint64_t step = 0; step < 100; ++step)
      shared += !owner.emplace(pardl::detail::slurm_port(job, step), std::to_string(job)).second;
  CHECK(shared == 0);
}
