// SPDX-License-Identifier: Apache-2.0
#include "twin/core.h"

#include <algorithm>
#include <cstdio>

#include "twin/launch.h"

namespace twin {

namespace {

thread_local Core* current = nullptr;

constexpr size_t kRemembered = 1 << 13;  // instructions of a pipe whose lines are kept

}  // namespace

void Bind(Core* core) { current = core; }

Core& Current() {
    if (current == nullptr) throw TwinError("a kernel API was called outside a launch: start the kernel through twin::Launch::Run");
    return *current;
}

bool OnVectorCore() { return Current().isVector; }

const char* Name(Memory memory) {
    constexpr const char* names[] = {"UB", "L1", "L0A", "L0B", "L0C"};
    return names[static_cast<uint32_t>(memory)];
}

const char* Name(pipe_t pipe) {
    constexpr const char* names[] = {"PIPE_S", "PIPE_V", "PIPE_MTE1", "PIPE_MTE2", "PIPE_MTE3", "PIPE_M", "PIPE_FIX", "PIPE_ALL"};
    return names[pipe];
}

std::string Format(const char* format, ...) {
    char text[512];
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    return text;
}

static std::string Place(const Where& where) {
    const char* slash = std::strrchr(where.file, '/');
    return Format("%s:%d", slash != nullptr ? slash + 1 : where.file, where.line);
}

void Fail(const char* instruction, const Where& where, const std::string& rule) {
    Core& core = Current();
    throw TwinError(core.launch.Describe(core) + ": " + instruction + " at " + Place(where) + ": " + rule);
}

__attribute__((optimize("O3"))) void Clock::Join(const Clock& other) {
    uint32_t changed = 0;
    uint32_t* mine = seen.data();
    const uint32_t* theirs = other.seen.data();
    const size_t count = seen.size();
    for (size_t i = 0; i < count; ++i) {
        const uint32_t later = std::max(mine[i], theirs[i]);
        changed |= later ^ mine[i];
        mine[i] = later;
    }
    if (changed != 0) ++version;
}

GmBlock& GmRange::Block(size_t index) {
    std::unique_ptr<GmPage>& page = pages[index / std::tuple_size_v<GmPage>];
    if (page == nullptr) page = std::make_unique<GmPage>();
    return (*page)[index % std::tuple_size_v<GmPage>];
}

void GmRange::Touch(size_t from, size_t size, bool writes) {
    if (touched.empty()) touched.resize(bytes / kBlock / 64 + 1);
    for (size_t b = from / kBlock; b <= (from + size - 1) / kBlock; ++b) touched[b / 64] |= uint64_t{1} << b % 64;
    moved[writes ? 1 : 0] += size;
}

Core::Core(Launch& owner, uint32_t number, bool vector, uint32_t blockIndex, uint32_t subIndex)
    : launch(owner), index(number), isVector(vector), block(blockIndex), sub(subIndex), counting(Profiling()),
      infNanBefore(owner.Random() % 2 != 0), infNan(infNanBefore) {
    for (uint32_t m = 0; m < kMemories; ++m) {
        if (isVector != (m == static_cast<uint32_t>(Memory::kUb))) continue;
        memories[m].bytes.assign(kMemoryBytes[m], kPoison);
        memories[m].written.assign(kMemoryBytes[m], 0);
        memories[m].blocks.resize((kMemoryBytes[m] + kBlock - 1) / kBlock);
    }
}

Clock Core::Complete(pipe_t pipe) const {
    Clock clock = known[pipe];
    clock.seen[Unit(pipe)] = issued[pipe];
    return clock;
}

void Core::Tell(pipe_t pipe, Clock& clock) const {
    clock.seen = known[pipe].seen;
    clock.seen[Unit(pipe)] = issued[pipe];
    clock.Join(known[PIPE_S]);
}

Where Core::Line(pipe_t pipe, uint32_t number) const {
    const std::vector<Where>& kept = lines[pipe];
    return number + kRemembered > issued[pipe] ? kept[number % kRemembered] : Where{"(long ago)", 0};
}

void Core::SetFlag(pipe_t source, pipe_t target, int32_t id, const Where& where) {
    if (id < 0 || id >= static_cast<int32_t>(kEvents)) Fail("SetFlag", where, Format("event ids are 0..7, got %d", id));
    Flag& flag = flags[source][target][id];
    if (flag.set) {
        Fail("SetFlag", where, Format("flag %s -> %s %d is set twice without a wait; first at %s", Name(source), Name(target), id,
                                      Place(flag.where).c_str()));
    }
    flag.set = true, flag.where = where;
    counters.Note(Event::kSetFlag);
    Tell(source, flag.clock);
}

void Core::WaitFlag(pipe_t source, pipe_t target, int32_t id, const Where& where) {
    if (id < 0 || id >= static_cast<int32_t>(kEvents)) Fail("WaitFlag", where, Format("event ids are 0..7, got %d", id));
    Flag& flag = flags[source][target][id];
    if (!flag.set) {
        Fail("WaitFlag", where, Format("nobody has set flag %s -> %s %d: the pipe would wait for ever", Name(source), Name(target), id));
    }
    known[target].Join(flag.clock);
    flag.set = false;
    counters.Note(Event::kWaitFlag);
}

void Core::Barrier(pipe_t pipe) {
    if (pipe != PIPE_ALL) {
        known[pipe].seen[Unit(pipe)] = issued[pipe];
        ++known[pipe].version;
        return;
    }
    for (uint32_t p = 0; p < kPipes; ++p) known[PIPE_S].Join(Complete(static_cast<pipe_t>(p)));
    for (uint32_t p = 0; p < kPipes; ++p) known[p].Join(known[PIPE_S]);
}

void Core::TakeEvent(const char* name, pipe_t source, pipe_t target, const Where& where) {
    if (source == target) return;
    if (queueEvents[source][target] >= kEvents) {
        Fail(name, where, Format("the %u event ids of %s_%s are all held by buffers of queues; use fewer buffers at this position", kEvents,
                                 Name(source) + 5, Name(target) + 5));
    }
    ++queueEvents[source][target];
    counters.Note(Event::kSetFlag);
}

void Core::GiveEvent(pipe_t source, pipe_t target) {
    if (source == target) return;
    --queueEvents[source][target];
    counters.Note(Event::kWaitFlag);
}

void Core::Forget(Memory memory, uint32_t from, uint32_t bytes) {
    LocalMemory& local = memories[static_cast<uint32_t>(memory)];
    std::fill_n(local.bytes.begin() + from, bytes, kPoison);
    std::fill_n(local.written.begin() + from, bytes, uint8_t{0});
}

void Core::CheckEnd() {
    if (!leak.empty()) throw TwinError(launch.Describe(*this) + ": " + leak);
    for (uint32_t s = 0; s < kPipes; ++s) {
        for (uint32_t t = 0; t < kPipes; ++t) {
            for (uint32_t id = 0; id < kEvents; ++id) {
                const Flag& flag = flags[s][t][id];
                if (flag.set) {
                    Fail("SetFlag", flag.where, Format("flag %s -> %s %u is still set when the kernel ends: it would poison the next one",
                                                       Name(static_cast<pipe_t>(s)), Name(static_cast<pipe_t>(t)), id));
                }
            }
        }
    }
    if (!mask.Default()) {
        throw TwinError(launch.Describe(*this) + ": the kernel ends with its own vector mask in force; call SetMaskNorm and ResetMask");
    }
    if (atomic != Atomic::kOff) throw TwinError(launch.Describe(*this) + ": the kernel ends with DMA accumulation on; call DisableDmaAtomic");
    if (infNan != infNanBefore) {
        throw TwinError(launch.Describe(*this) + ": the kernel ends with another bit 48 of the control register than it began with; "
                        "keep GetCtrlSpr<48, 48>() and put it back");
    }
    if (!dirtyLines.empty()) {
        throw TwinError(launch.Describe(*this) + ": GlobalTensor::SetValue left a line in the data cache; "
                        "write it back with DataCacheCleanAndInvalid");
    }
}

Instruction::Instruction(const char* name, pipe_t pipe, const Where& where)
    : core_(Current()), name_(name), pipe_(pipe), where_(where) {
    if (pipe == PIPE_V && !core_.isVector) Fail("vector instructions do nothing on the cube core; guard with ASCEND_IS_AIV");
    if ((pipe == PIPE_M || pipe == PIPE_FIX || pipe == PIPE_MTE1) && core_.isVector) {
        Fail("cube instructions do nothing on a vector core; guard with ASCEND_IS_AIC");
    }
    if (pipe == PIPE_V && !core_.stateSet) Fail("masks and DMA modes of an earlier kernel are in force: begin with InitSocState or a TPipe");
    core_.launch.MayYield(core_);
    // The scalar unit stalls at its own waits, so whatever it issues later starts after what it has waited for.
    if (pipe != PIPE_S && core_.passedOn[pipe] != core_.known[PIPE_S].version) {
        core_.known[pipe].Join(core_.known[PIPE_S]);
        core_.passedOn[pipe] = core_.known[PIPE_S].version;
    }
    number_ = ++core_.issued[pipe];
    std::vector<Where>& lines = core_.lines[pipe];
    if (lines.size() < kRemembered && lines.size() <= number_) lines.resize(std::min(kRemembered, size_t{2} * number_));
    lines[number_ % kRemembered] = where;
}

void Instruction::Require(bool condition, const char* format, ...) const {
    if (condition) return;
    char text[512];
    va_list args;
    va_start(args, format);
    std::vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    Fail(text);
}

void Instruction::Align(const LocalSpan& tensor, uint32_t bytes, const char* operand) const {
    Require(tensor.address % bytes == 0, "%s starts at %s byte %u, must be a multiple of %u", operand, Name(tensor.memory), tensor.address,
            bytes);
}

bool Instruction::Ordered(uint16_t unit, uint32_t number) const {
    if (core_.known[pipe_].seen[unit] >= number) return true;
    return unit == core_.Unit(pipe_) && (number == number_ || pipe_ == PIPE_S || inOrder_);
}

void Instruction::Hazard(const Access& before, const char* operand, const char* relation, const std::string& place) const {
    const bool sameCore = before.unit / kPipes == core_.index;
    const pipe_t other = static_cast<pipe_t>(before.unit % kPipes);
    std::string remedy;
    if (!sameCore) remedy = "no cross-core synchronisation orders them";
    else if (other == pipe_) remedy = Format("no PipeBarrier<%s> between them", Name(pipe_));
    else remedy = Format("no event %s_%s between them", Name(other) + 5, Name(pipe_) + 5);
    Fail(Format("hazard: %s %s %s what %s of %s at %s; %s", operand, place.c_str(), relation,
                before.kind == Access::kRead ? "is read" : "is written",
                sameCore ? Name(other) : core_.launch.DescribeUnit(before.unit).c_str(),
                Place(core_.launch.Line(before.unit, before.number)).c_str(), remedy.c_str()));
}

void Instruction::LocalHazard(const LocalSpan& tensor, uint32_t index, const char* operand, bool writes) const {
    const LocalBlock& block = core_.memories[static_cast<uint32_t>(tensor.memory)].blocks[index];
    const std::string place = Format("(%s block %u)", Name(tensor.memory), index);
    const auto check = [&](pipe_t pipe, uint32_t number, Access::Kind kind) {
        if (!Ordered(core_.Unit(pipe), number)) Hazard({number, 0, core_.Unit(pipe), kind}, operand, writes ? "overwrites" : "reads", place);
    };
    check(static_cast<pipe_t>(block.write & 7u), block.write >> 3, Access::kWrite);
    for (uint32_t pipe = 0; pipe < kPipes; ++pipe) check(static_cast<pipe_t>(pipe), block.reads[pipe], Access::kRead);
    Fail("an access is out of order");
}

__attribute__((optimize("O3"))) uint32_t Instruction::Local(const LocalSpan& tensor, int64_t offset, uint32_t bytes, const char* operand, bool writes) {
    Require(tensor.live != nullptr, "%s is an empty tensor", operand);
    Require(*tensor.live == tensor.generation, "%s is used after FreeTensor", operand);
    Require(offset >= 0 && offset + bytes <= tensor.bytes, "%s: bytes %lld..%lld of a tensor of %u bytes", operand,
            static_cast<long long>(offset), static_cast<long long>(offset) + bytes, tensor.bytes);
    LocalMemory& local = core_.memories[static_cast<uint32_t>(tensor.memory)];
    const uint32_t from = tensor.address + static_cast<uint32_t>(offset);
    if (bytes == 0) return from;
    if (core_.counting) CountLocal(tensor.memory, from, bytes, operand, writes);
    // What this pipe may rely on within its core, and what this instruction itself has noted.
    std::array<uint32_t, kPipes + 1> safe{}, self{};
    std::copy_n(core_.known[pipe_].seen.begin() + core_.index * kPipes, kPipes, safe.begin());
    if (pipe_ == PIPE_S || inOrder_) safe[pipe_] = number_;
    self[pipe_] = number_;
    const uint32_t mine = number_ << 3 | pipe_, last = (from + bytes - 1) / kBlock;
    for (uint32_t b = from / kBlock; b <= last; ++b) {
        LocalBlock& block = local.blocks[b];
        uint32_t late = (block.write >> 3 > safe[block.write & 7u]) & (block.write != mine);
        if (writes) {
            for (uint32_t pipe = 0; pipe <= kPipes; ++pipe) late |= (block.reads[pipe] > safe[pipe]) & (block.reads[pipe] != self[pipe]);
        }
        if (late != 0) LocalHazard(tensor, b, operand, writes);
        if (writes) block.write = mine;
        else block.reads[pipe_] = number_;
    }
    if (writes) std::memset(local.written.data() + from, 1, bytes);
    return from;
}

const uint8_t* Instruction::Read(const LocalSpan& tensor, int64_t offset, uint32_t bytes, const char* operand) {
    const uint32_t from = Local(tensor, offset, bytes, operand, false);
    LocalMemory& local = core_.memories[static_cast<uint32_t>(tensor.memory)];
    if (const void* hole = std::memchr(local.written.data() + from, 0, bytes)) {
        const auto at = static_cast<uint32_t>(static_cast<const uint8_t*>(hole) - local.written.data());
        Fail(Format("%s reads poison: %s byte %u (byte %lld of the tensor) was never written", operand, Name(tensor.memory), at,
                    static_cast<long long>(at) - tensor.address));
    }
    return local.bytes.data() + from;
}

Peeked Instruction::Peek(const LocalSpan& tensor, int64_t offset, uint32_t bytes, const char* operand) {
    const uint32_t from = Local(tensor, offset, bytes, operand, false);
    LocalMemory& local = core_.memories[static_cast<uint32_t>(tensor.memory)];
    return {local.bytes.data() + from, local.written.data() + from};
}

uint8_t* Instruction::Write(const LocalSpan& tensor, int64_t offset, uint32_t bytes, const char* operand) {
    return core_.memories[static_cast<uint32_t>(tensor.memory)].bytes.data() + Local(tensor, offset, bytes, operand, true);
}

uint8_t* Instruction::WrittenMap(const LocalSpan& tensor, int64_t offset) {
    return core_.memories[static_cast<uint32_t>(tensor.memory)].written.data() + tensor.address + offset;
}

uint8_t* Instruction::Global(const uint8_t* address, size_t bytes, const char* operand, Access::Kind kind) {
    GmRange* range = core_.launch.Find(address);
    Require(range != nullptr, "%s: address %p is in no registered range of global memory", operand, static_cast<const void*>(address));
    const size_t from = static_cast<size_t>(address - range->data);
    Require(from + bytes <= range->bytes, "%s: bytes %zu..%zu of '%s', which has %zu", operand, from, from + bytes, range->name, range->bytes);
    Require(kind == Access::kRead || range->kind != GmRange::kIn, "%s: '%s' is an input and is written", operand, range->name);
    if (core_.counting && bytes != 0) CountGlobal(*range, from, bytes, kind != Access::kRead);
    if (range->kind == GmRange::kIn || bytes == 0) return range->data + from;
    TrackGm(*range, from, bytes, operand, kind);
    if (range->kind == GmRange::kInOut) return range->data + from;
    if (kind == Access::kWrite) {
        std::memset(range->written.data() + from, 1, bytes);
    } else if (const void* hole = std::memchr(range->written.data() + from, 0, bytes)) {
        Fail(Format("%s reads poison: byte %zu of '%s' was never written", operand,
                    static_cast<size_t>(static_cast<const uint8_t*>(hole) - range->written.data()), range->name));
    }
    return range->data + from;
}

void Instruction::TrackGm(GmRange& range, size_t from, size_t bytes, const char* operand, Access::Kind kind) {
    Access mine{number_, 0, core_.Unit(pipe_), kind};
    for (size_t b = from / kBlock; b <= (from + bytes - 1) / kBlock; ++b) {
        const size_t first = std::max(from, b * kBlock) - b * kBlock, last = std::min(from + bytes, (b + 1) * kBlock) - b * kBlock;
        mine.mask = static_cast<uint32_t>(((uint64_t{1} << last) - 1) & ~((uint64_t{1} << first) - 1));
        GmBlock& block = range.Block(b);
        TrackBlock(block, mine, operand, range, b);
        if (kind != Access::kRead) block.lastTime = core_.launch.Tick(), block.lastWriter = mine.unit;
    }
}

void Instruction::TrackBlock(GmBlock& block, const Access& mine, const char* operand, const GmRange& range, size_t index) const {
    Access* list = block.many != nullptr ? block.many->data() : block.few.data();
    uint32_t kept = 0;
    for (uint32_t i = 0; i < block.count; ++i) {
        Access old = list[i];
        const bool conflict = mine.kind == Access::kWrite || old.kind == Access::kWrite || mine.kind != old.kind;
        if (conflict && (old.mask & mine.mask) != 0 && !Ordered(old.unit, old.number)) {
            const auto first = static_cast<size_t>(__builtin_ctz(old.mask & mine.mask));
            Hazard(old, operand, mine.kind == Access::kRead ? "reads" : "overwrites", Format("('%s' byte %zu)", range.name, index * kBlock + first));
        }
        if (mine.kind == Access::kWrite || (old.kind == mine.kind && old.unit == mine.unit)) old.mask &= ~mine.mask;
        if (old.mask != 0) list[kept++] = old;
    }
    block.count = kept + 1;
    if (block.many == nullptr && kept == block.few.size()) block.many = std::make_unique<std::vector<Access>>(block.few.begin(), block.few.end());
    if (block.many == nullptr) {
        block.few[kept] = mine;
    } else {
        block.many->resize(kept);
        block.many->push_back(mine);
    }
}

void Instruction::CountMove(Path path, size_t from, size_t bytes) {
    Counters::Moved& moved = core_.counters.moved[static_cast<size_t>(path)];
    // Rows that lie end to end are one.
    moved.instructions += moved_ ? 0 : 1, moved.rows += moved_ && from == movedTo_ ? 0 : 1, moved.bytes += bytes;
    moved_ = true, movedTo_ = from + bytes;
}

void Instruction::CountGlobal(GmRange& range, size_t from, size_t bytes, bool writes) {
    range.Touch(from, bytes, writes);
    if (pipe_ == PIPE_S) core_.counters.Note(Event::kScalarGlobal);
    else if (pipe_ == PIPE_MTE2) CountMove(core_.isVector ? Path::kGmToUb : Path::kGmToL1, from, bytes);
    else if (pipe_ == PIPE_MTE3) CountMove(core_.isVector ? Path::kUbToGm : Path::kL1ToGm, from, bytes);
    else if (pipe_ == PIPE_FIX) CountMove(Path::kL0cToGm, from, bytes);
}

void Instruction::CountLocal(Memory memory, uint32_t from, uint32_t bytes, const char* operand, bool writes) {
    if (pipe_ == PIPE_S) core_.counters.Note(Event::kScalarLocal);
    if (pipe_ == PIPE_MTE1 && writes) CountMove(memory == Memory::kL0a ? Path::kToL0a : Path::kToL0b, from, bytes);
    if (pipe_ != PIPE_V) return;
    const uintptr_t key = reinterpret_cast<uintptr_t>(operand) << 1 | (writes ? 1u : 0u);
    for (auto& [name, sum] : operands_) {
        if (name != 0 && name != key) continue;
        name = key, sum += bytes;
        return;
    }
}

void Instruction::CountVector() const {
    uint64_t longest = 0;
    for (const auto& [name, sum] : operands_) longest = std::max(longest, sum);
    if (longest == 0) return;
    core_.counters.NoteVector(name_, lanes_ == 0 ? 0 : kRepeat / lanes_, repeats_ != 0 ? repeats_ : (longest + kRepeat - 1) / kRepeat);
}

const uint8_t* Instruction::ReadGm(const uint8_t* address, size_t bytes, const char* operand) {
    return Global(address, bytes, operand, Access::kRead);
}

void Instruction::RequireFreshLine(const uint8_t* address) {
    GmRange* range = core_.launch.Find(address);
    if (range == nullptr || range->kind == GmRange::kIn) return;
    const GmBlock& block = range->Block(static_cast<size_t>(address - range->data) / kBlock);
    const uint64_t time = block.lastTime;
    const uint16_t writer = block.lastWriter;
    if (time == 0 || writer == core_.Unit(PIPE_S)) return;
    const auto found = core_.cleanedLines.find(reinterpret_cast<uintptr_t>(address) / kCacheLine);
    Require(found != core_.cleanedLines.end() && found->second > time,
            "'%s' was written by %s since this core last invalidated the line: the data cache may hold the old value; call "
            "DataCacheCleanAndInvalid first", range->name, core_.launch.DescribeUnit(writer).c_str());
}

void Instruction::TakeLine(const uint8_t* address) {
    GmRange* range = core_.launch.Find(address);
    if (range == nullptr || range->kind == GmRange::kIn) return;
    const uint8_t* line = address - reinterpret_cast<uintptr_t>(address) % kCacheLine;
    const uint8_t *first = std::max<const uint8_t*>(line, range->data), *last = std::min<const uint8_t*>(line + kCacheLine, range->data + range->bytes);
    if (first < last) TrackGm(*range, static_cast<size_t>(first - range->data), static_cast<size_t>(last - first), "the cache line of the tensor", Access::kRead);
}

uint8_t* Instruction::WriteGm(uint8_t* address, size_t bytes, const char* operand, bool atomic) {
    return Global(address, bytes, operand, atomic ? Access::kAtomic : Access::kWrite);
}

}  // namespace twin
