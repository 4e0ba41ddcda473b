// SPDX-License-Identifier: Apache-2.0
#include "twin/launch.h"

#include <sys/mman.h>

#include <algorithm>

namespace twin {

void Bind(Core* core);

namespace {

constexpr size_t kRedZone = 512;
constexpr size_t kStack = 1 << 20;  // of a core; a page is used when it is touched
constexpr size_t kGuard = 1 << 16;  // below it

thread_local Launch* entering = nullptr;

}  // namespace

Launch::Launch(const char* kernel, uint32_t blocks, Ratio ratio, const Settings& settings)
    : kernel_(kernel), blocks_(blocks), ratio_(ratio), settings_(settings), random_(settings.seed) {
    if (blocks == 0) throw TwinError(std::string(kernel) + ": launched with 0 blocks; return before the launch when there is no work");
    for (uint32_t block = 0; block < blocks; ++block) {
        const auto add = [&](bool vector, uint32_t sub) {
            auto slot = std::make_unique<Slot>();
            slot->core = std::make_unique<Core>(*this, static_cast<uint32_t>(cores_.size()), vector, block, sub);
            cores_.push_back(std::move(slot));
        };
        if (ratio != Ratio::kVectorOnly) add(false, 0);
        if (ratio != Ratio::kCubeOnly) add(true, 0);
        if (ratio == Ratio::kOneToTwo) add(true, 1);
    }
    for (auto& slot : cores_) {
        for (Clock& clock : slot->core->known) clock.seen.assign(units(), 0);
    }
}

uint8_t* Launch::In(const char* name, const void* data, size_t bytes) {
    auto range = std::make_unique<GmRange>();
    range->kind = GmRange::kIn, range->name = name, range->bytes = bytes;
    range->data = static_cast<uint8_t*>(const_cast<void*>(data));
    ranges_.push_back(std::move(range));
    return ranges_.back()->data;
}

uint8_t* Launch::Own(GmRange::Kind kind, const char* name, uint8_t* home, size_t bytes) {
    auto range = std::make_unique<GmRange>();
    range->kind = kind, range->name = name, range->bytes = bytes, range->home = home;
    range->storage.assign(bytes + 3 * kRedZone, kPoison);
    const auto start = reinterpret_cast<uintptr_t>(range->storage.data());
    range->data = range->storage.data() + (kRedZone - start % kRedZone) + kRedZone;
    range->written.assign(bytes, 0);
    range->pages.resize((bytes + kPage - 1) / kPage);
    ranges_.push_back(std::move(range));
    return ranges_.back()->data;
}

uint8_t* Launch::Out(const char* name, void* data, size_t bytes) {
    return Own(GmRange::kOut, name, static_cast<uint8_t*>(data), bytes);
}

uint8_t* Launch::InOut(const char* name, void* data, size_t bytes) {
    auto range = std::make_unique<GmRange>();
    range->kind = GmRange::kInOut, range->name = name, range->bytes = bytes, range->data = static_cast<uint8_t*>(data);
    range->pages.resize((bytes + kPage - 1) / kPage);
    ranges_.push_back(std::move(range));
    return ranges_.back()->data;
}

uint8_t* Launch::Workspace(const char* name, size_t bytes) { return Own(GmRange::kWorkspace, name, nullptr, bytes); }

GmRange* Launch::Find(const uint8_t* address) {
    for (auto& range : ranges_) {
        const size_t room = range->storage.empty() ? 0 : kRedZone;
        if (address >= range->data - room && address < range->data + range->bytes + room) {
            return address >= range->data ? range.get() : nullptr;
        }
    }
    return nullptr;
}

std::string Launch::Describe(const Core& core) const {
    if (!core.isVector) return Format("kernel %s, AIC %u", kernel_, core.block);
    return Format("kernel %s, AIV %u", kernel_, ratio_ == Ratio::kOneToTwo ? core.block * 2 + core.sub : core.block);
}

std::string Launch::DescribeUnit(uint16_t unit) const {
    const Core& core = *cores_[unit / kPipes]->core;
    return Format("%s %u %s", core.isVector ? "AIV" : "AIC", core.block * (ratio_ == Ratio::kOneToTwo && core.isVector ? 2 : 1) + core.sub,
                  Name(static_cast<pipe_t>(unit % kPipes)));
}

Where Launch::Line(uint16_t unit, uint32_t number) const {
    return cores_[unit / kPipes]->core->Line(static_cast<pipe_t>(unit % kPipes), number);
}

Launch::~Launch() {
    for (auto& slot : cores_) {
        if (slot->stack != nullptr) munmap(slot->stack, kStack + kGuard);
    }
}

void Launch::Run(const std::function<void()>& kernel) {
    kernelBody_ = &kernel;
    DrawYield();
    SwitchTo(home_, Choose());
    // After a failure the cores that stand inside the kernel leave it, so that their destructors run.
    for (size_t i = 0; i < cores_.size(); ++i) {
        if (cores_[i]->started && !cores_[i]->done) SwitchTo(home_, i);
    }
    if (error_.empty()) CheckEnd();
    if (!error_.empty()) throw TwinError(error_);
    if (Profiling()) KeepProfile(*this);
    for (auto& range : ranges_) {
        if (range->home != nullptr) std::memcpy(range->home, range->data, range->bytes);
    }
}

void Launch::Enter() {
    Launch& launch = *entering;
    launch.Body(*launch.cores_[launch.running_]);
}

void Launch::Body(Slot& slot) {
    Bind(slot.core.get());
    std::string error;
    try {
        (*kernelBody_)();
        slot.core->CheckEnd();
    } catch (const TwinError& failure) {
        error = failure.message;
    } catch (const Stopped&) {
    }
    slot.done = true;
    Bind(nullptr);
    if (!error.empty() && error_.empty()) error_ = error;
    if (!error.empty()) stopped_ = true;
    if (!stopped_) PassOn(slot);
    setcontext(&home_);
}

void Launch::Prepare(Slot& slot) {
    slot.stack = mmap(nullptr, kStack + kGuard, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slot.stack == MAP_FAILED) {
        slot.stack = nullptr;
        throw TwinError(Format("kernel %s: no memory for the stack of a core", kernel_));
    }
    mprotect(slot.stack, kGuard, PROT_NONE);
    getcontext(&slot.context);
    slot.context.uc_stack.ss_sp = static_cast<uint8_t*>(slot.stack) + kGuard, slot.context.uc_stack.ss_size = kStack;
    slot.context.uc_link = nullptr;
    makecontext(&slot.context, &Launch::Enter, 0);
}

void Launch::SwitchTo(ucontext_t& from, size_t next) {
    Slot& slot = *cores_[next];
    if (!slot.started) Prepare(slot);
    slot.started = true, running_ = next, entering = this;
    Bind(slot.core.get());
    swapcontext(&from, &slot.context);
}

size_t Launch::Choose() {
    std::vector<size_t>& able = able_;
    able.clear();
    for (size_t i = 0; i < cores_.size(); ++i) {
        Slot& slot = *cores_[i];
        if (!slot.done && (!slot.waiting || slot.ready())) able.push_back(i);
    }
    return able.empty() ? cores_.size() : able[random_() % able.size()];
}

void Launch::PassOn(Slot& slot) {
    const size_t next = Choose();
    if (next < cores_.size()) {
        if (cores_[next].get() == &slot) return;
        SwitchTo(slot.context, next);
        Bind(slot.core.get());
    } else if (std::any_of(cores_.begin(), cores_.end(), [](const auto& other) { return !other->done; })) {
        error_ = Deadlock();
        stopped_ = true;
    }
    if (stopped_ && !slot.done) throw Stopped{};
}

std::string Launch::Deadlock() const {
    std::string text = Format("kernel %s: deadlock", kernel_);
    for (const auto& slot : cores_) {
        text += "; " + DescribeUnit(slot->core->Unit(PIPE_S)).substr(0, 3) + Format(" %u ", slot->core->block);
        text += slot->done ? "has ended" : "waits for " + slot->what;
    }
    return text;
}

void Launch::DrawYield() {
    untilYield_ = settings_.yieldOneIn == 0 || cores_.size() == 1 ? 0 : static_cast<uint32_t>(1 + random_() % (2 * settings_.yieldOneIn - 1));
}

void Launch::Yield(Core& core) {
    DrawYield();
    if (untilYield_ != 0) PassOn(*cores_[core.index]);
}

void Launch::WaitUntil(Core& core, const std::string& what, const std::function<bool()>& ready) {
    Slot& slot = *cores_[core.index];
    if (ready()) return;
    slot.waiting = true, slot.what = what, slot.ready = ready;
    PassOn(slot);
    slot.waiting = false;
}

void Launch::RequireAllStarted(const char* name, const Where& where) const {
    const uint32_t most = ratio_ == Ratio::kVectorOnly ? kMostVectorCores : kMostVectorCores / 2;
    if (blocks_ > most) Fail(name, where, Format("%u blocks were launched, no chip has more than %u cores: late blocks would never start", blocks_, most));
}

void Launch::SyncAll(Core& core, bool vectorOnly, const Where& where) {
    RequireAllStarted("SyncAll", where);
    if (vectorOnly && !core.isVector) Fail("SyncAll", where, "SyncAll() joins vector cores only; use SyncAll<false>() on the cube core");
    core.Barrier(PIPE_ALL);
    core.counters.Note(Event::kSyncAll);
    Slot& slot = *cores_[core.index];
    const size_t kind = vectorOnly ? 1 : 0, round = slot.arrivals[kind].size();
    slot.arrivals[kind].push_back(core.Complete(PIPE_S));
    WaitUntil(core, Format("SyncAll at line %d", where.line), [this, kind, round, vectorOnly] {
        return std::all_of(cores_.begin(), cores_.end(), [&](const auto& other) {
            return !InGroup(*other->core, vectorOnly) || other->arrivals[kind].size() > round;
        });
    });
    for (auto& other : cores_) {
        if (InGroup(*other->core, vectorOnly)) core.known[PIPE_S].Join(other->arrivals[kind][round]);
    }
    core.Barrier(PIPE_ALL);
}

void Launch::SoftSyncAll(Core& core, uint8_t* counters, size_t localBytes, int32_t usedCores, bool vectorOnly, const Where& where) {
    const auto members = static_cast<size_t>(std::count_if(cores_.begin(), cores_.end(), [&](const auto& slot) { return InGroup(*slot->core, vectorOnly); }));
    const size_t bytes = members * kBlock;
    if (usedCores != 0 && static_cast<size_t>(usedCores) != members) {
        Fail("SyncAll", where, Format("usedCores is %d, the launch has %zu cores: the others would wait for ever", usedCores, members));
    }
    GmRange* range = Find(counters);
    if (range == nullptr || range->kind == GmRange::kIn || static_cast<size_t>(counters - range->data) + bytes > range->bytes) {
        Fail("SyncAll", where, Format("gmWorkspace must be %zu writable bytes, 32 a core", bytes));
    }
    if (localBytes < bytes) Fail("SyncAll", where, Format("ubWorkspace has %zu bytes, must have %zu", localBytes, bytes));
    if (std::any_of(counters, counters + bytes, [](uint8_t byte) { return byte != 0; })) {
        Fail("SyncAll", where, "gmWorkspace must be zero before the first call: let the host clear it");
    }
    SyncAll(core, vectorOnly, where);
}

std::vector<Launch::Slot*> Launch::Senders(const Core& receiver, uint8_t mode) {
    std::vector<Slot*> senders;
    for (auto& slot : cores_) {
        const Core& core = *slot->core;
        const bool sameKind = core.isVector == receiver.isVector, sameBlock = core.block == receiver.block;
        if (mode == 0 ? sameKind : mode == 1 ? sameKind && sameBlock : !sameKind && sameBlock) senders.push_back(slot.get());
    }
    return senders;
}

std::vector<Launch::Slot*> Launch::Receivers(const Core& sender, uint8_t mode) { return Senders(sender, mode); }

void Launch::CrossSet(Core& core, uint8_t mode, pipe_t pipe, uint16_t flag, const Where& where) {
    if (flag >= kCrossFlags) Fail("CrossCoreSetFlag", where, Format("flag ids are 0..10 (SyncAll uses 11..14), got %u", flag));
    RequireAllStarted("CrossCoreSetFlag", where);
    Slot& slot = *cores_[core.index];
    core.counters.Note(Event::kCrossSet);
    core.known[pipe].Join(core.known[PIPE_S]);
    slot.sets[flag].push_back(core.Complete(pipe));
    slot.modes[flag] = mode;
    for (Slot* receiver : Receivers(core, mode)) {
        const size_t pending = slot.sets[flag].size() - std::min(slot.sets[flag].size(), receiver->waits[flag]);
        if (pending > 15) Fail("CrossCoreSetFlag", where, Format("flag %u has %zu sets that nobody waited for; the counter holds 15", flag, pending));
    }
    MayYield(core);
}

void Launch::CrossWait(Core& core, uint8_t mode, pipe_t pipe, uint16_t flag, const Where& where) {
    if (flag >= kCrossFlags) Fail("CrossCoreWaitFlag", where, Format("flag ids are 0..10 (SyncAll uses 11..14), got %u", flag));
    Slot& slot = *cores_[core.index];
    core.counters.Note(Event::kCrossWait);
    const std::vector<Slot*> senders = Senders(core, mode);
    const size_t round = slot.waits[flag];
    WaitUntil(core, Format("CrossCoreWaitFlag<%u>(%u) at line %d", mode, flag, where.line), [senders, flag, round] {
        return std::all_of(senders.begin(), senders.end(), [&](const Slot* sender) { return sender->sets[flag].size() > round; });
    });
    for (Slot* sender : senders) core.known[pipe].Join(sender->sets[flag][round]);
    ++slot.waits[flag];
}

void Launch::CheckEnd() {
    for (auto& slot : cores_) {
        for (uint32_t flag = 0; flag < kCrossFlags; ++flag) {
            if (slot->sets[flag].empty()) continue;
            for (Slot* receiver : Receivers(*slot->core, static_cast<uint8_t>(slot->modes[flag]))) {
                if (receiver->waits[flag] == slot->sets[flag].size()) continue;
                error_ = Describe(*slot->core) + Format(": CrossCoreSetFlag %u was called %zu times, %s waited %zu times", flag,
                                                        slot->sets[flag].size(), Describe(*receiver->core).c_str(), receiver->waits[flag]);
                return;
            }
        }
    }
    for (auto& range : ranges_) {
        const uint8_t* end = range->data + range->bytes;
        const auto dirty = [](uint8_t byte) { return byte != kPoison; };
        if (!range->storage.empty() && (std::any_of(range->data - kRedZone, range->data, dirty) || std::any_of(end, end + kRedZone, dirty))) {
            error_ = Format("kernel %s: the red zone around '%s' was overwritten through a raw pointer", kernel_, range->name);
        }
    }
}

}  // namespace twin
