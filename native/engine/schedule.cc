#include "engine/schedule.h"

#include <algorithm>
#include <numeric>
#include <string>

namespace quern {
namespace {

// What the operations of a chain write and read between two turns should fit into a second-level
// cache beside the weights.
constexpr std::int64_t kTurnFloats = 64 * 1024;

// Consecutive operations [first, last) computed in turns.
struct Chain {
  std::size_t first = 0, last = 0;
};

// The memory of one or more values, and the chains [first, last] during which it must keep them.
struct Storage {
  std::int64_t floats = 0;
  std::size_t first = 0, last = 0;
  std::int64_t offset = 0;
  bool external = false;  // the input, which may lie elsewhere, or a constant
  std::int64_t rows = 0;  // of a window; 0: the whole value
};

class Scheduler {
 public:
  Scheduler(const Graph& graph, const FusedGraph& fused,
            const std::vector<std::unique_ptr<Computation>>& computations,
            const std::vector<std::size_t>& constants)
      : graph_(graph),
        operations_(fused.operations),
        memory_of_(fused.memory_of),
        computations_(computations),
        constants_(constants) {}

  Schedule make() {
    note_readers();
    share_in_place();
    note_readers();
    find_chains();
    find_storages();
    find_windows();
    lay_out();
    for (const Chain& chain : chains_) write_steps(chain);
    schedule_.result = place(graph_.output, 0);
    return std::move(schedule_);
  }

 private:
  // By memory: the operations that read it, in order; one that reads it twice is there twice.
  void note_readers() {
    readers_.assign(graph_.values.size(), {});
    writer_.assign(graph_.values.size(), kNoWriter);
    for (std::size_t i = 0; i < operations_.size(); ++i) {
      for (const std::size_t input : operations_[i].inputs) {
        readers_[memory_of_[input]].push_back(i);
      }
      // The first writer, where a later one works in place.
      if (writer_[memory_of_[operations_[i].output]] == kNoWriter) {
        writer_[memory_of_[operations_[i].output]] = i;
      }
      if (operations_[i].means) writer_[memory_of_[*operations_[i].means]] = i;
    }
  }

  bool is_external(std::size_t memory) const {
    return memory == 0 || constants_[memory] != kNoConstant;
  }

  // An operation that may write over its input does so where nothing reads the input afterwards.
  void share_in_place() {
    for (std::size_t i = 0; i < operations_.size(); ++i) {
      const Operation& operation = operations_[i];
      if (!computations_[i]->in_place()) continue;
      const std::size_t input = memory_of_[operation.inputs[0]];
      if (is_external(input) || input == memory_of_[graph_.output]) continue;
      std::size_t reads = 0;
      bool last = true;
      for (std::size_t k = 0; k < operations_.size(); ++k) {
        for (const std::size_t value : operations_[k].inputs) {
          if (memory_of_[value] != input) continue;
          if (k == i) ++reads;
          if (k > i) last = false;
        }
      }
      if (!last || reads != 1) continue;
      const std::size_t output = memory_of_[operation.output];
      for (std::size_t& memory : memory_of_) {
        if (memory == output) memory = input;
      }
    }
  }

  void find_chains() {
    chain_of_.resize(operations_.size());
    for (std::size_t i = 0; i < operations_.size(); ++i) {
      if (!chains_.empty() && continues(chains_.back(), i)) {
        chains_.back().last = i + 1;
      } else {
        chains_.push_back({i, i + 1});
      }
      chain_of_[i] = chains_.size() - 1;
    }
  }

  // Whether operation i can be computed in turns with the chain that ends right before it.
  bool continues(const Chain& chain, std::size_t i) const {
    const Operation& operation = operations_[i];
    if (!computations_[i]->by_rows() || !computations_[i - 1]->by_rows()) return false;
    if (operation.inputs[0] != operations_[i - 1].output) return false;
    for (std::size_t k = 1; k < operation.inputs.size(); ++k) {
      const std::size_t memory = memory_of_[operation.inputs[k]];
      for (std::size_t other = chain.first; other < i; ++other) {
        const auto& means = operations_[other].means;
        if (memory_of_[operations_[other].output] == memory ||
            (means && memory_of_[*means] == memory)) {
          return false;
        }
      }
    }
    return true;
  }

  Extent extent(std::size_t value) const { return extent_of(graph_, value); }

  void find_storages() {
    storages_.resize(graph_.values.size());
    for (std::size_t value = 0; value < graph_.values.size(); ++value) {
      Storage& storage = storages_[memory_of_[value]];
      storage.external = is_external(memory_of_[value]);
      if (!storage.external) storage.floats = std::max(storage.floats, extent(value).floats());
    }
    for (std::size_t value = 0; value < graph_.values.size(); ++value) {
      Storage& storage = storages_[value];
      if (memory_of_[value] != value || storage.external) continue;
      // A value that nothing makes is one that fusion did away with.
      if (writer_[value] == kNoWriter) {
        storage.floats = 0;
        continue;
      }
      storage.first = chain_of_[writer_[value]];
      storage.last = storage.first;
      for (const std::size_t reader : readers_[value]) {
        storage.last = std::max(storage.last, chain_of_[reader]);
      }
    }
    storages_[memory_of_[graph_.output]].last = chains_.size();
    Storage& input = storages_[0];
    input.floats = (element_count(graph_.values[0].shape) + kBlock - 1) / kBlock * kBlock;
    for (const std::size_t reader : readers_[0])
      input.last = std::max(input.last, chain_of_[reader]);
  }

  // A value between two operations of a chain that nothing else sees.
  bool can_be_window(std::size_t value, std::size_t reader) const {
    if (memory_of_[value] != value || value == memory_of_[graph_.output]) return false;
    if (readers_[value] != std::vector<std::size_t>{reader}) return false;
    if (operations_[reader - 1].means) return false;
    // Other names of the same memory: an alias, or an operation in place.
    return std::count(memory_of_.begin(), memory_of_.end(), value) == 1;
  }

  void find_windows() {
    windows_.assign(operations_.size(), false);
    turn_.assign(chains_.size(), 0);
    for (std::size_t c = 0; c < chains_.size(); ++c) {
      const Chain& chain = chains_[c];
      const std::size_t end = chain.last - 1;
      const std::int64_t height = extent(operations_[end].output).height;
      turn_[c] = rows_of_a_turn(chain, height);
      if (turn_[c] >= height) continue;
      for (std::size_t i = chain.first; i + 1 < chain.last; ++i) {
        windows_[i] = can_be_window(operations_[i].output, i + 1);
      }
      // A dry run says how many rows each window has to hold.
      std::vector<std::int64_t> most(operations_.size(), 0);
      run_chain(chain, turn_[c], [&](std::size_t i, const Turn& turn) {
        if (i > chain.first && windows_[i - 1]) {
          most[i - 1] = std::max(most[i - 1], turn.window_end - turn.window_first);
        }
      });
      for (std::size_t i = chain.first; i + 1 < chain.last; ++i) {
        if (!windows_[i]) continue;
        Storage& storage = storages_[operations_[i].output];
        const Extent whole = extent(operations_[i].output);
        storage.rows = std::min(most[i], whole.height);
        storage.floats = whole.blocks() * storage.rows * whole.row();
      }
    }
  }

  std::int64_t rows_of_a_turn(const Chain& chain, std::int64_t height) const {
    if (chain.last - chain.first < 2) return height;
    // Floats of all that the chain touches, for one row of its last output.
    const std::size_t input = operations_[chain.first].inputs[0];
    std::int64_t floats =
        input == 0 ? element_count(graph_.values[0].shape) : extent(input).floats();
    std::int64_t weights = 1;
    for (std::size_t i = chain.first; i < chain.last; ++i) {
      floats += extent(operations_[i].output).floats();
      weights += static_cast<std::int64_t>(computations_[i]->weight_floats());
    }
    // Every turn reads all weights: beyond the size of the values that costs more than it saves.
    const std::int64_t turns = std::clamp<std::int64_t>(
        std::min((floats + kTurnFloats - 1) / kTurnFloats, floats / weights), 1, height);
    return (height + turns - 1) / turns;
  }

  struct Turn {
    Rows rows;
    // Of the window that is read: rows that it must hold, and those it held before and keeps.
    std::int64_t window_first = 0, window_end = 0, kept_from = 0, kept_end = 0;
  };

  // Calls visit(operation, turn) in the order in which a chain is computed.
  template <typename Visit>
  void run_chain(const Chain& chain, std::int64_t rows_of_a_turn, Visit visit) {
    std::vector<std::int64_t> done(operations_.size(), 0);
    base_.assign(operations_.size(), 0);
    const auto compute = [&](const auto& self, std::size_t i, std::int64_t end) -> void {
      if (done[i] >= end) return;
      Turn turn;
      turn.rows = {done[i], end};
      if (i > chain.first) {
        const Rows needed = computations_[i]->needs(turn.rows);
        if (windows_[i - 1]) {
          turn.window_first = std::min(needed.first, done[i - 1]);
          turn.window_end = std::max(needed.last, done[i - 1]);
          turn.kept_from = turn.window_first;
          turn.kept_end = done[i - 1];
          before_[i - 1] = base_[i - 1];
          base_[i - 1] = turn.window_first;
          moving(i - 1, turn);
        }
        self(self, i - 1, needed.last);
      }
      visit(i, turn);
      done[i] = end;
    };
    before_.assign(operations_.size(), 0);
    const std::size_t last = chain.last - 1;
    const std::int64_t height = extent(operations_[last].output).height;
    for (std::int64_t end = rows_of_a_turn; end < height + rows_of_a_turn; end += rows_of_a_turn) {
      compute(compute, last, std::min(end, height));
    }
    // Rows that nothing in the chain needed, of values that others read.
    for (std::size_t i = chain.first; i < last; ++i) {
      if (!windows_[i]) compute(compute, i, extent(operations_[i].output).height);
    }
  }

  void moving(std::size_t i, const Turn& turn) {
    if (!writing_ || turn.kept_end <= turn.kept_from || before_[i] == turn.kept_from) return;
    const Extent whole = extent(operations_[i].output);
    const Storage& storage = storages_[operations_[i].output];
    Step::Move move;
    move.to = storage.offset;
    move.from = storage.offset + (turn.kept_from - before_[i]) * whole.row();
    move.floats = (turn.kept_end - turn.kept_from) * whole.row();
    move.blocks = whole.blocks();
    move.plane = storage.rows * whole.row();
    moves_.push_back(move);
  }

  void lay_out() {
    std::vector<std::size_t> by_size;
    for (std::size_t i = 0; i < storages_.size(); ++i) {
      if (storages_[i].floats > 0 && memory_of_[i] == i) by_size.push_back(i);
    }
    std::stable_sort(by_size.begin(), by_size.end(), [&](std::size_t a, std::size_t b) {
      return storages_[a].floats > storages_[b].floats;
    });
    std::vector<const Storage*> placed;  // by offset
    std::int64_t end = 0;
    for (const std::size_t index : by_size) {
      Storage& storage = storages_[index];
      storage.offset = lowest_gap(storage, placed);
      end = std::max(end, storage.offset + storage.floats);
      check_arena(end);
      placed.insert(std::upper_bound(placed.begin(), placed.end(), storage.offset,
                                     [](std::int64_t offset, const Storage* other) {
                                       return offset < other->offset;
                                     }),
                    &storage);
    }
    std::size_t scratch = 0;
    for (const auto& computation : computations_) {
      scratch = std::max(scratch, computation->scratch_floats());
    }
    schedule_.input = storages_[0].offset;
    schedule_.scratch = end;
    schedule_.arena_floats = end + static_cast<std::int64_t>((scratch + 15) / 16 * 16);
    check_arena(schedule_.arena_floats);
  }

  static void check_arena(std::int64_t floats) {
    if (floats > kMaxArenaFloats) {
      throw WeightsError("the network needs more than " +
                         std::to_string(kMaxArenaFloats / 256 / 1024) + " MiB of memory for a run");
    }
  }

  // The lowest offset at which `wanted` overlaps nothing that is needed at the same time.
  static std::int64_t lowest_gap(const Storage& wanted, const std::vector<const Storage*>& placed) {
    std::int64_t offset = 0;
    for (const Storage* other : placed) {
      if (wanted.first > other->last || other->first > wanted.last) continue;
      if (offset + wanted.floats <= other->offset) break;
      offset = std::max(offset, other->offset + other->floats);
    }
    return offset;
  }

  Place place(std::size_t value, std::int64_t window_first) const {
    const std::size_t memory = memory_of_[value];
    const Extent whole = extent(value);
    if (memory == 0) return {Place::Memory::kInput, 0, whole.height * whole.width};
    if (constants_[memory] != kNoConstant) {
      return {Place::Memory::kConstants, static_cast<std::int64_t>(constants_[memory]),
              whole.plane()};
    }
    const Storage& storage = storages_[memory];
    if (storage.rows == 0) return {Place::Memory::kArena, storage.offset, whole.plane()};
    return {Place::Memory::kArena, storage.offset - window_first * whole.row(),
            storage.rows * whole.row()};
  }

  void write_steps(const Chain& chain) {
    writing_ = true;
    const std::size_t index = chain_of_[chain.first];
    run_chain(chain, turn_[index], [&](std::size_t i, const Turn& turn) {
      const Operation& operation = operations_[i];
      Step step;
      step.operation = i;
      step.rows = turn.rows;
      step.moves = std::move(moves_);
      moves_.clear();
      for (std::size_t k = 0; k < operation.inputs.size(); ++k) {
        const bool window = k == 0 && i > chain.first && windows_[i - 1];
        step.inputs.push_back(place(operation.inputs[k], window ? base_[i - 1] : 0));
      }
      step.output = place(operation.output, windows_[i] ? base_[i] : 0);
      if (operation.means) step.means = place(*operation.means, 0);
      schedule_.steps.push_back(std::move(step));
    });
    writing_ = false;
  }

  static constexpr std::size_t kNoWriter = std::numeric_limits<std::size_t>::max();

  const Graph& graph_;
  const std::vector<Operation>& operations_;
  std::vector<std::size_t> memory_of_;
  const std::vector<std::unique_ptr<Computation>>& computations_;
  const std::vector<std::size_t>& constants_;

  std::vector<std::vector<std::size_t>> readers_;
  std::vector<std::size_t> writer_;
  std::vector<Chain> chains_;
  std::vector<std::size_t> chain_of_;  // by operation
  std::vector<std::int64_t> turn_;     // by chain: rows of the last output at a time
  std::vector<Storage> storages_;      // by memory
  std::vector<bool> windows_;          // by operation: whether its output is one
  std::vector<std::int64_t> base_;     // by operation: the first row that its window holds
  std::vector<std::int64_t> before_;   // the same, before the last move
  std::vector<Step::Move> moves_;      // before the next step
  bool writing_ = false;
  Schedule schedule_;
};

}  // namespace

Schedule make_schedule(const Graph& graph, const FusedGraph& fused,
                       const std::vector<std::unique_ptr<Computation>>& computations,
                       const std::vector<std::size_t>& constants) {
  return Scheduler(graph, fused, computations, constants).make();
}

}  // namespace quern
