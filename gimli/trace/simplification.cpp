#include "gimli/trace/simplification.h"

#include <algorithm>
#include <numeric>

#include "gimli/trace/lowering.h"

namespace gimli::tracing {
namespace {

bool is_own(const Instruction& instruction, Operation operation) {
  return instruction.own && instruction.own->operation == operation;
}

bool lie_alike(const Geometry& a, const Geometry& b) {
  return a.sizes() == b.sizes() && a.strides() == b.strides() && a.type() == b.type();
}

class Simplification final {
 public:
  explicit Simplification(Program& program) : program_(program) {}

  void run() {
    rename();
    count();
    for (auto& instruction : program_.instructions) {
      for (auto& place : instruction.places) follow(place.geometry);
      take_numbers(instruction);
      leave_out_number(instruction);
      if (!leave_out_copy(instruction)) fuse(instruction);
    }
    for (auto& output : program_.outputs) {
      if (output) follow(*output);
    }
    remove_unread();
    write_over();
  }

 private:
  /// What is written over as a whole lies in a slot of its own from then on.
  void rename() {
    auto& slots = program_.slots;
    std::vector<size_t> now(slots.size());
    std::iota(now.begin(), now.end(), 0);
    std::vector<bool> is_written(slots.size(), false);
    for (auto& instruction : program_.instructions) {
      for (auto& place : instruction.places) place.geometry.slot = now[place.geometry.slot];
      for (auto& result : instruction.results) {
        const auto slot = result.slot;
        if (instruction.own && is_written[slot] && slots[slot].kind == Slot::computed && fills_slot(result)) {
          now[slot] = slots.size();
          slots.push_back(slots[slot]);
        }
        is_written[slot] = true;
        result.slot = now[slot];
      }
    }
    for (auto& output : program_.outputs) {
      if (output) output->slot = now[output->slot];
    }
  }

  /// How often the list writes to and reads from a slot, and where it writes last.
  struct Use {
    int writes = 0, reads = 0;
    size_t writer = 0;
  };

  void count() {
    use_.assign(program_.slots.size(), {});
    moved_to_.resize(program_.slots.size());
    std::iota(moved_to_.begin(), moved_to_.end(), 0);
    for (size_t i = 0; i < program_.instructions.size(); ++i) {
      const auto& instruction = program_.instructions[i];
      for (const auto& result : instruction.results) {
        ++use_[result.slot].writes;
        use_[result.slot].writer = i;
      }
      for (const auto& place : instruction.places) ++use_[place.geometry.slot].reads;
    }
    for (const auto& output : program_.outputs) {
      if (output) ++use_[output->slot].reads;
    }
  }

  /// Whether what is in the slot stays the same once it is there.
  bool is_written_once(size_t slot) const {
    return use_[slot].writes <= (program_.slots[slot].kind == Slot::computed ? 1 : 0);
  }

  /// The instruction that computes all that is in a slot, if one does.
  const Instruction* source(size_t slot) const {
    if (program_.slots[slot].kind != Slot::computed || use_[slot].writes != 1) return nullptr;
    const auto& writer = program_.instructions[use_[slot].writer];
    return writer.own && fills_slot(writer.results[0]) ? &writer : nullptr;
  }

  bool fills_slot(const Geometry& tensor) const {
    return tensor.offset() == 0 && tensor.bytes() == program_.slots[tensor.slot].bytes;
  }

  /// A slot that was a copy of another is read there.
  void follow(Geometry& tensor) const { tensor.slot = moved_to_[tensor.slot]; }

  /// Operands that are filled with a number are that number.
  void take_numbers(Instruction& instruction) {
    if (!instruction.own || instruction.own->operation >= Operation::softmax) return;
    std::erase_if(instruction.places, [&](const Place& place) {
      const auto* filled = source(place.geometry.slot);
      if (!filled || !is_own(*filled, Operation::fill)) return false;
      const auto number = filled->own->p;
      instruction.own->numbers.emplace_back(place.argument,
                                            place.geometry.type() == at::kFloat ? static_cast<float>(number) : number);
      --use_[place.geometry.slot].reads;
      return true;
    });
  }

  /// a + 0, 0 + p b, 1 a and a 1 are copies, or p b.
  void leave_out_number(Instruction& instruction) {
    const bool adds = is_own(instruction, Operation::add), multiplies = is_own(instruction, Operation::multiply);
    if ((!adds && !multiplies) || instruction.own->numbers.size() != 1) return;
    const auto [k, number] = instruction.own->numbers[0];
    const auto other = instruction.places[0].geometry;
    if (number != (adds ? 0 : 1) || other.type() != instruction.results[0].type()) return;
    const auto p = adds && k == 1 ? instruction.own->p : 1;
    instruction.own = OwnOperation{.operation = p == 1 ? Operation::copy : Operation::scale, .p = p};
    instruction.places = {{1, -1, other}};
  }

  bool leave_out_copy(const Instruction& instruction) {
    if (!is_own(instruction, Operation::copy)) return false;
    const auto* from = instruction.operand(1);
    const auto& to = instruction.results[0];
    if (!from || program_.slots[from->slot].kind != Slot::computed || !is_written_once(from->slot)) return false;
    if (source(to.slot) != &instruction || from->offset() != 0 || !lie_alike(*from, to)) return false;
    use_[from->slot].reads += use_[to.slot].reads - 1;
    use_[to.slot].reads = 0;
    moved_to_[to.slot] = from->slot;
    return true;
  }

  /// The product that alone computes a tensor, for this reader alone, from what is still there: as it lies in the
  /// tensor.
  std::optional<Instruction> product_of(const Geometry& tensor) {
    const auto* product = source(tensor.slot);
    if (!product || !is_own(*product, Operation::product) || use_[tensor.slot].reads != 1) return std::nullopt;
    for (const auto& place : product->places) {
      if (!is_written_once(place.geometry.slot)) return std::nullopt;
    }
    const auto& result = product->results[0];
    if (result.offset() != tensor.offset() || product->own->epilogue != Epilogue::none) return std::nullopt;
    if (lie_alike(result, tensor)) return *product;
    if (!lie_alike(transposed(result), tensor)) return std::nullopt;
    return turned(*product);
  }

  /// Puts a product in the place of what reads it.
  bool put(Instruction& instruction, Instruction product) {
    product.results = instruction.results;
    product = oriented(std::move(product));
    if (!loop_of(product)) return false;
    for (const auto& place : instruction.places) --use_[place.geometry.slot].reads;
    for (const auto& place : product.places) ++use_[place.geometry.slot].reads;
    instruction = std::move(product);
    return true;
  }

  void fuse(Instruction& instruction) {
    if (is_own(instruction, Operation::add)) {
      for (const size_t k : {2, 1}) {
        const auto *read = instruction.operand(k), *other = instruction.operand(3 - k);
        if (!read || !other || read->sizes() != instruction.results[0].sizes()) continue;
        if (other->type() != read->type() || !is_written_once(other->slot)) continue;
        auto product = product_of(*read);
        if (!product || product->operand(3)) continue;
        product->own->p *= k == 2 ? instruction.own->p : 1;
        product->own->q = k == 1 ? instruction.own->p : 1;
        product->places.push_back({3, -1, *other});
        if (put(instruction, *product)) return;
      }
    }
    const bool rectifies = is_own(instruction, Operation::rectify), passes = is_own(instruction, Operation::pass_above);
    if ((!rectifies && !passes) || instruction.own->p != 0) return;
    const auto* read = instruction.operand(1);
    if (!read || read->sizes() != instruction.results[0].sizes()) return;
    auto product = product_of(*read);
    if (!product) return;
    product->own->epilogue = rectifies ? Epilogue::rectify : Epilogue::pass_above;
    if (passes) {
      const auto* gate = instruction.operand(2);
      if (!gate || !is_written_once(gate->slot)) return;
      product->places.push_back({4, -1, *gate});
    }
    put(instruction, *product);
  }

  void remove_unread() {
    std::vector<bool> is_read(program_.slots.size(), false);
    for (const auto& output : program_.outputs) {
      if (output) is_read[output->slot] = true;
    }
    auto& list = program_.instructions;
    std::vector<Instruction> kept;
    for (auto instruction = list.rbegin(); instruction != list.rend(); ++instruction) {
      const bool has_effect =
          instruction->results.empty() || std::any_of(instruction->results.begin(), instruction->results.end(),
                                                      [&](const Geometry& result) { return is_read[result.slot]; });
      if (!has_effect) continue;
      for (const auto& place : instruction->places) is_read[place.geometry.slot] = true;
      kept.push_back(std::move(*instruction));
    }
    list.assign(std::make_move_iterator(kept.rbegin()), std::make_move_iterator(kept.rend()));
  }

  /// A pointwise result lies where an operand was that nobody reads any more.
  void write_over() {
    auto& list = program_.instructions;
    count();
    std::vector<size_t> last(program_.slots.size(), 0), now(program_.slots.size());
    std::iota(now.begin(), now.end(), 0);
    for (size_t i = 0; i < list.size(); ++i) {
      for (const auto& place : list[i].places) last[place.geometry.slot] = i;
      for (const auto& result : list[i].results) last[result.slot] = i;
    }
    for (const auto& output : program_.outputs) {
      if (output) last[output->slot] = list.size();
    }
    for (size_t i = 0; i < list.size(); ++i) {
      auto& instruction = list[i];
      const auto is_free = [&](const Place& place) {
        const auto& result = instruction.results[0];
        const auto slot = place.geometry.slot;
        return last[slot] == i && program_.slots[slot].kind == Slot::computed && lie_alike(place.geometry, result) &&
               fills_slot(place.geometry) &&
               std::all_of(instruction.places.begin(), instruction.places.end(), [&](const Place& other) {
                 return other.geometry.slot != slot || lie_alike(other.geometry, result);
               });
      };
      std::optional<size_t> over;
      if (instruction.own && instruction.own->operation < Operation::softmax &&
          source(instruction.results[0].slot) == &instruction) {
        const auto place = std::find_if(instruction.places.begin(), instruction.places.end(), is_free);
        if (place != instruction.places.end()) over = now[place->geometry.slot];
      }
      for (auto& place : instruction.places) place.geometry.slot = now[place.geometry.slot];
      for (auto& result : instruction.results) {
        if (over) now[result.slot] = *over;
        result.slot = now[result.slot];
      }
    }
    for (auto& output : program_.outputs) {
      if (output) output->slot = now[output->slot];
    }
  }

  Program& program_;
  std::vector<Use> use_;
  std::vector<size_t> moved_to_;
};

}  // namespace

void simplify(Program& program) { Simplification(program).run(); }

}  // namespace gimli::tracing
