// SPDX-License-Identifier: MIT
/// \file   Which rank of how many this process is, read from the variables of whoever started it.
/// \layer  policy (std only).
///
/// The first of these that speaks is believed:
///   1. torchrun, or a program that is its own launcher: TORCHELASTIC_RUN_ID with RANK and WORLD_SIZE. It wins over a
///      Slurm step or an mpirun around it, since `srun torchrun …` and `mpirun … torchrun …` are how it is started on
///      many hosts.
///   2. RANK and WORLD_SIZE, set by hand or by a script. If a Slurm step or an mpirun around it names other ranks, and
///      no more of them are meant than it started, the two contradict each other and neither is believed.
///   3. Open MPI (OMPI_COMM_WORLD_*), then PMI (PMI_RANK, PMI_SIZE: MPICH, Intel MPI, MVAPICH): before Slurm, because
///      mpirun inside a Slurm job starts its helpers by srun, whose variables its ranks inherit.
///   4. A Slurm step: SLURM_STEP_ID with SLURM_PROCID. A batch script, `salloc`, and the extern, batch and interactive
///      steps carry SLURM_PROCID too, but are not ranks.
///   5. Nobody: a world of one.
/// An empty variable counts as unset. A container changes nothing, as long as it hands the variables on.
#pragma once

#include <climits>
#include <concepts>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "pardl/policy/detail/slurm.hpp"
#include "pardl/policy/error.hpp"
#include "pardl/policy/whole_number.hpp"
#include "pardl/version.hpp"

namespace pardl::inline PARDL_ABI {

/// Who started this process.
enum class Launcher {
  none,       ///< nobody: a world of one
  pardl,      ///< pardl::launch in a parent of this process
  torchrun,   ///< torchrun's agent
  variables,  ///< RANK and WORLD_SIZE, set by hand
  open_mpi,   ///< Open MPI's mpirun
  pmi,        ///< the mpiexec of MPICH, Intel MPI or MVAPICH
  slurm,      ///< srun
};

/// The launcher's name as a user knows it.
[[nodiscard]] constexpr std::string_view name(Launcher launcher) {
  switch (launcher) {
    case Launcher::none:
      return "no launcher";
    case Launcher::pardl:
      return "pardl::launch";
    case Launcher::torchrun:
      return "torchrun";
    case Launcher::variables:
      return "RANK and WORLD_SIZE";
    case Launcher::open_mpi:
      return "Open MPI";
    case Launcher::pmi:
      return "MPI (PMI)";
    case Launcher::slurm:
      return "Slurm";
  }
  return "?";
}

/// What the launcher said. With size 1 nothing else is needed; with more, the ranks meet in a store at
/// master_addr:master_port, or agree on one in rendezvous_folder.
struct Environment {
  Launcher launcher = Launcher::none;
  int rank = 0;
  int size = 1;
  int local_rank = 0;         ///< among the ranks of this host; a guess unless places_known
  int local_size = 1;         ///< ranks on this host; a guess unless places_known
  int node_rank = 0;          ///< this host among the hosts, as the launcher counts them; may be a guess
  int nodes = 1;              ///< hosts (torchrun: agents), as the launcher counts them; a guess unless places_known
  bool places_known = true;   ///< false: only rank and size were given; who sits where is for the ranks to find out
  std::string master_addr{};  ///< where the store is or is to be; empty: use rendezvous_folder
  int master_port = 0;        ///< 0: use rendezvous_folder
  bool agent_store = false;   ///< the store is served already: every rank is a client; otherwise rank 0 serves it
  std::string
      rendezvous_folder{};   ///< private folder of this job on this one host in which rank 0 may leave an address
  std::string error_file{};  ///< where torchrun or pardl::launch looks for this rank's last words; or empty
  std::string run_id{};      ///< torchrun's and pardl::launch's name for this run; or empty
  int restart_count = 0;     ///< how often the whole group was started anew
  int max_restarts = 0;      ///< how often it may be
};

/// Anything that answers like std::getenv: a C string, or null.
template <class G>
concept environment_getter = requires(G get, char const* name) {
  { get(name) } -> std::convertible_to<char const*>;
};

namespace detail {

/// Variables, read as text or as a number with a sentence if it is none.
template <environment_getter G>
class Variables {
 public:
  explicit Variables(G get) : get_(std::move(get)) {}

  [[nodiscard]] std::string text(char const* name) {
    char const* const value = get_(name);
    return value == nullptr ? std::string() : std::string(value);
  }
  [[nodiscard]] bool has(char const* name) { return !text(name).empty(); }

  /// The variable as a number in [least, most], or nothing if it is unset. \throws ConfigError if it is anything else.
  [[nodiscard]] std::optional<int> number(char const* name, int least, int most = INT_MAX) {
    auto const value = text(name);
    if (value.empty()) return std::nullopt;
    auto const parsed = whole_number(value);
    std::string const said = std::string(name) + "=\"" + value + "\" ";
    if (!parsed) throw ConfigError(sentence("policy", said + "is not a number", "unset it or give it a whole number"));
    if (*parsed < least || *parsed > most)
      throw ConfigError(sentence("policy", said + "is out of range",
                                 "it lies between " + std::to_string(least) + " and " + std::to_string(most)));
    return parsed;
  }

  /// A variable that must be there once `because` (another variable, or a launcher) is.
  [[nodiscard]] int needed(char const* name, std::string_view because, int least, int most = INT_MAX) {
    if (auto const value = number(name, least, most)) return *value;
    throw ConfigError(
        sentence("policy", std::string(because) + " is set but not " + name, "set both, or neither to run alone"));
  }

 private:
  G get_;
};

inline constexpr int most_port = 65535;

/// 0 <= rank < size, with the names under which the two were given.
inline void check_rank(int rank, int size, char const* rank_name, char const* size_name) {
  if (rank < size) return;
  throw ConfigError(sentence(
      "policy", std::string(rank_name) + "=" + std::to_string(rank) + " but " + size_name + "=" + std::to_string(size),
      "ranks count from 0 to one less than their number"));
}

/// What holds wherever the values come from.
inline Environment checked(Environment e, std::string_view from) {
  auto const refuse = [&](std::string const& what) {
    throw ConfigError(sentence("policy", e.rank, e.size, std::string(from) + " says " + what,
                               "these contradict each other: unset what was not set by the launcher"));
  };
  if (e.local_rank >= e.local_size)
    refuse("local rank " + std::to_string(e.local_rank) + " of " + std::to_string(e.local_size));
  if (e.local_size > e.size)
    refuse(std::to_string(e.local_size) + " ranks on this host of " + std::to_string(e.size) + " in all");
  if (e.nodes > e.size) refuse(std::to_string(e.nodes) + " hosts for " + std::to_string(e.size) + " ranks");
  if (e.node_rank >= e.nodes) refuse("host " + std::to_string(e.node_rank) + " of " + std::to_string(e.nodes));
  return e;
}

/// Places when only rank and size are known: as if all ranks shared a host.
inline void guess_places(Environment& e) {
  e.places_known = e.size == 1;
  e.local_rank = e.rank;
  e.local_size = e.size;
  e.node_rank = 0;
  e.nodes = 1;
}

/// Hosts from a known local size, filled one after the other; exact if every host has as many ranks.
inline void guess_nodes(Environment& e) {
  e.nodes = (e.size + e.local_size - 1) / e.local_size;
  e.node_rank = e.rank / e.local_size;
}

/// RANK and WORLD_SIZE and what stands beside them, from torchrun, pardl::launch, or by hand.
template <class G>
[[nodiscard]] Environment read_torchrun(Variables<G>& vars, bool elastic) {
  Environment e;
  e.rank = vars.needed("RANK", "WORLD_SIZE", 0);
  e.size = vars.needed("WORLD_SIZE", "RANK", 1);
  check_rank(e.rank, e.size, "RANK", "WORLD_SIZE");
  e.run_id = vars.text("TORCHELASTIC_RUN_ID");
  e.launcher = !elastic                                ? Launcher::variables
               : vars.text("PARDL_RUN_ID") == e.run_id ? Launcher::pardl
                                                       : Launcher::torchrun;
  e.agent_store = elastic && vars.text("TORCHELASTIC_USE_AGENT_STORE") == "True";
  e.error_file = vars.text("TORCHELASTIC_ERROR_FILE");
  e.restart_count = vars.number("TORCHELASTIC_RESTART_COUNT", 0).value_or(0);
  e.max_restarts = vars.number("TORCHELASTIC_MAX_RESTARTS", 0).value_or(0);
  e.master_addr = vars.text("MASTER_ADDR");
  e.master_port = vars.number("MASTER_PORT", 0, most_port).value_or(0);
  if (e.size > 1 && (e.master_addr.empty() || e.master_port == 0))
    throw ConfigError(sentence(
        "policy", e.rank, e.size,
        std::string("RANK and WORLD_SIZE are set but not ") + (e.master_addr.empty() ? "MASTER_ADDR" : "MASTER_PORT"),
        "all ranks need the address and the port at which rank 0 serves"));
  auto const local_rank = vars.number("LOCAL_RANK", 0);
  auto const local_size = vars.number("LOCAL_WORLD_SIZE", 1);
  if (elastic || (local_rank && local_size)) {
    e.local_rank = vars.needed("LOCAL_RANK", "LOCAL_WORLD_SIZE", 0);
    e.local_size = vars.needed("LOCAL_WORLD_SIZE", "LOCAL_RANK", 1);
    guess_nodes(e);
    if (auto const nodes = vars.number("GROUP_WORLD_SIZE", 1)) e.nodes = *nodes;
    if (auto const node = vars.number("GROUP_RANK", 0)) e.node_rank = *node;
  } else {
    guess_places(e);
    if (local_rank) e.local_rank = *local_rank;  // half the places: enough to choose a GPU by
    if (local_rank && *local_rank >= e.size) check_rank(*local_rank, e.size, "LOCAL_RANK", "WORLD_SIZE");
  }
  return checked(std::move(e), elastic ? "torchrun" : "the environment");
}

/// MASTER_ADDR and MASTER_PORT where a launcher does not set them but a user may.
template <class G>
void read_master(Variables<G>& vars, Environment& e) {
  e.master_addr = vars.text("MASTER_ADDR");
  e.master_port = vars.number("MASTER_PORT", 1, most_port).value_or(0);
}

template <class G>
[[nodiscard]] std::optional<Environment> read_open_mpi(Variables<G>& vars) {
  if (!vars.has("OMPI_COMM_WORLD_RANK") && !vars.has("OMPI_COMM_WORLD_SIZE")) return std::nullopt;
  Environment e;
  e.launcher = Launcher::open_mpi;
  e.rank = vars.needed("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", 0);
  e.size = vars.needed("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", 1);
  check_rank(e.rank, e.size, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE");
  e.local_rank = vars.needed("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_RANK", 0);
  e.local_size = vars.needed("OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_RANK", 1);
  guess_nodes(e);  // OMPI_COMM_WORLD_NODE_RANK is a rank within a host, in spite of its name
  if (e.local_size == e.size) e.rendezvous_folder = vars.text("PMIX_SERVER_TMPDIR");
  read_master(vars, e);
  return checked(std::move(e), "Open MPI");
}

template <class G>
[[nodiscard]] std::optional<Environment> read_pmi(Variables<G>& vars) {
  if (!vars.has("PMI_RANK") && !vars.has("PMI_SIZE")) return std::nullopt;
  Environment e;
  e.launcher = Launcher::pmi;
  e.rank = vars.needed("PMI_RANK", "PMI_SIZE", 0);
  e.size = vars.needed("PMI_SIZE", "PMI_RANK", 1);
  check_rank(e.rank, e.size, "PMI_RANK", "PMI_SIZE");
  guess_places(e);
  constexpr std::pair<char const*, char const*> places[] = {{"MPI_LOCALRANKID", "MPI_LOCALNRANKS"},
                                                            {"MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"}};
  for (auto const& [local_rank, local_size] : places) {
    if (!vars.has(local_rank)) continue;
    e.local_rank = vars.needed(local_rank, local_rank, 0);
    e.local_size = vars.needed(local_size, local_rank, 1);
    e.places_known = true;
    guess_nodes(e);
    break;
  }
  read_master(vars, e);
  return checked(std::move(e), "PMI");
}

template <class G>
[[nodiscard]] std::optional<Environment> read_slurm(Variables<G>& vars) {
  // Outside a step this is a batch script or a shell; the steps that Slurm makes for itself have the highest numbers.
  constexpr std::uint64_t first_reserved_step = 0xffff'fff0;
  auto const step = whole_number<std::uint64_t>(vars.text("SLURM_STEP_ID"));
  if (!step || *step >= first_reserved_step) return std::nullopt;
  Environment e;
  e.launcher = Launcher::slurm;
  char const* const tasks = vars.has("SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS";
  e.rank = vars.needed("SLURM_PROCID", "SLURM_STEP_ID", 0);
  e.size = vars.needed(tasks, "SLURM_PROCID", 1);
  check_rank(e.rank, e.size, "SLURM_PROCID", tasks);
  char const* const nodes = vars.has("SLURM_STEP_NUM_NODES") ? "SLURM_STEP_NUM_NODES" : "SLURM_NNODES";
  char const* const layout =
      vars.has("SLURM_STEP_TASKS_PER_NODE") ? "SLURM_STEP_TASKS_PER_NODE" : "SLURM_TASKS_PER_NODE";
  e.nodes = vars.number(nodes, 1).value_or(1);
  e.node_rank = vars.number("SLURM_NODEID", 0).value_or(0);
  e.local_rank = vars.number("SLURM_LOCALID", 0).value_or(e.nodes == 1 ? e.rank : 0);
  auto const per_node = tasks_per_node(vars.text(layout));
  long total = 0;
  for (int const n : per_node.value_or(std::vector<int>{})) total += n;
  if (e.nodes == 1) {
    e.local_size = e.size;
  } else if (per_node && total == e.size && per_node->size() == static_cast<std::size_t>(e.nodes) &&
             e.node_rank < e.nodes) {
    e.local_size = (*per_node)[static_cast<std::size_t>(e.node_rank)];
  } else {
    e.places_known = false;
    e.local_size = e.size;
  }
  read_master(vars, e);
  // On one host the store listens on loopback only; on several, on the step's first host, which has rank 0.
  if (e.master_addr.empty())
    e.master_addr =
        e.nodes == 1
            ? "127.0.0.1"
            : first_host(vars.text(vars.has("SLURM_STEP_NODELIST") ? "SLURM_STEP_NODELIST" : "SLURM_JOB_NODELIST"));
  if (e.master_addr.empty())
    throw ConfigError(sentence("policy", e.rank, e.size, "Slurm gave no SLURM_STEP_NODELIST",
                               "export MASTER_ADDR with the host of rank 0"));
  if (e.master_port == 0)
    e.master_port = slurm_port(whole_number<std::uint64_t>(vars.text("SLURM_JOB_ID")).value_or(0), *step);
  return checked(std::move(e), "Slurm");
}

/// Several ranks of MPI need a place to meet: a folder of their own, or an address that the user gives.
inline Environment with_meeting_point(Environment e) {
  if (e.size == 1 || !e.rendezvous_folder.empty()) {
    if (e.master_addr.empty() || e.master_port == 0) return e;
    e.rendezvous_folder.clear();  // the user's word counts
    return e;
  }
  if (e.master_addr.empty() || e.master_port == 0)
    throw ConfigError(
        sentence("policy", e.rank, e.size,
                 std::string(name(e.launcher)) + " does not say where rank 0 is, and " +
                     (e.master_addr.empty() ? "MASTER_ADDR" : "MASTER_PORT") + " is not set",
                 e.launcher == Launcher::open_mpi
                     ? "start with: mpirun -x MASTER_ADDR=<rank 0's host> -x MASTER_PORT=29500 …"
                     : "start with: mpiexec -genv MASTER_ADDR <rank 0's host> -genv MASTER_PORT 29500 …"));
  return e;
}

/// RANK or WORLD_SIZE beside what mpirun or srun says of the same processes.
inline void check_agreement(std::optional<int> rank, std::optional<int> size, Environment const& outer) {
  // More ranks than srun or mpirun started: a script in each task starts several. That is its business.
  if (size && *size > outer.size) return;
  if ((!size || *size == outer.size) && (!rank || *rank == outer.rank)) return;
  auto const said = [](char const* variable, std::optional<int> value) {
    return value ? std::string(variable) + "=" + std::to_string(*value) + " " : std::string();
  };
  throw ConfigError(sentence("policy", outer.rank, outer.size,
                             said("RANK", rank) + said("WORLD_SIZE", size) + "contradicts " +
                                 std::string(name(outer.launcher)) + ", which says rank " + std::to_string(outer.rank) +
                                 " of " + std::to_string(outer.size),
                             "unset RANK and WORLD_SIZE in the job script, or set them for each task"));
}

}  // namespace detail

/// Reads who started this process, and as what. Local: touches nothing but the variables.
/// \param get  answers like std::getenv; for tests, a look-up in a table.
/// \throws ConfigError when a needed variable is missing beside its partner, is not a number, is out of range, or
///         contradicts another; the sentence names the variables.
template <environment_getter G>
[[nodiscard]] Environment read_environment(G get) {
  detail::Variables<G> vars(std::move(get));
  bool const by_hand = vars.has("RANK") || vars.has("WORLD_SIZE");
  if (vars.has("TORCHELASTIC_RUN_ID") && by_hand) return detail::read_torchrun(vars, true);

  std::optional<Environment> outer = detail::read_open_mpi(vars);
  if (!outer) outer = detail::read_pmi(vars);
  // srun --mpi=pmi2 sets both PMI's variables and its own, for the same ranks: its own say more.
  if (!outer || outer->launcher == Launcher::pmi) {
    auto slurm = detail::read_slurm(vars);
    if (slurm && (!outer || (slurm->rank == outer->rank && slurm->size == outer->size))) outer = std::move(slurm);
  }
  if (by_hand) {
    auto const rank = vars.number("RANK", 0);
    auto const size = vars.number("WORLD_SIZE", 1);
    if (rank && size) detail::check_rank(*rank, *size, "RANK", "WORLD_SIZE");
    if (outer) detail::check_agreement(rank, size, *outer);
    // Job scripts often export WORLD_SIZE alone and leave the rank to srun: no contradiction, nothing missing.
    if ((rank && size) || !outer) return detail::read_torchrun(vars, false);
  }
  if (!outer) {
    if (vars.has("LOCAL_RANK") || vars.has("LOCAL_WORLD_SIZE"))
      throw ConfigError(sentence("policy", "LOCAL_RANK or LOCAL_WORLD_SIZE is set but not RANK and WORLD_SIZE",
                                 "set all four, or none to run alone"));
    return {};
  }
  return detail::with_meeting_point(std::move(*outer));
}

/// The same from this process's own variables.
[[nodiscard]] inline Environment read_environment() {
  return read_environment([](char const* name) -> char const* { return std::getenv(name); });
}

static_assert(environment_getter<char* (*)(char const*)>);
static_assert(!environment_getter<int>);

}  // namespace pardl::inline PARDL_ABI
