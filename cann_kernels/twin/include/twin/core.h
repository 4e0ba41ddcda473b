// SPDX-License-Identifier: Apache-2.0
// One AI core: its memories, its pipes and what each pipe knows to be complete. Kernels run in program order; the clocks find
// accesses that hardware might do in another order.
#pragma once

#include <array>
#include <cstdarg>
#include <exception>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "twin/profile.h"
#include "twin/types.h"

namespace twin {

constexpr uint32_t kPipes = 7;
constexpr uint32_t kBlock = 32;
constexpr uint32_t kRepeat = 256;
constexpr uint32_t kCacheLine = 64;
constexpr uint32_t kEvents = 8;
constexpr uint8_t kPoison = 0xff;
constexpr uint32_t kUbBytes = 192 * 1024 - 256;
constexpr uint32_t kUbReserved = 8 * 1024;

enum class Memory : uint8_t { kUb, kL1, kL0a, kL0b, kL0c, kCount };
constexpr uint32_t kMemories = static_cast<uint32_t>(Memory::kCount);
constexpr std::array<uint32_t, kMemories> kMemoryBytes = {kUbBytes, 512 * 1024 - 256, 64 * 1024, 64 * 1024, 128 * 1024};

const char* Name(Memory memory);
const char* Name(pipe_t pipe);

/// What a broken rule ends a launch with. `what()` names kernel, core, instruction, source line, rule and values.
struct TwinError : std::exception {
    explicit TwinError(std::string text) : message(std::move(text)) {}
    const char* what() const noexcept override { return message.c_str(); }
    std::string message;
};

/// Ends the threads of the other cores once one of them has failed.
struct Stopped {};

/// By core * kPipes + pipe: the number of the last instruction of that pipe that is known to be complete.
struct Clock {
    std::vector<uint32_t> seen;
    uint64_t version = 0;  // another one for every change
    void Join(const Clock& other);
};

/// One access to part of 32 bytes of global memory.
struct Access {
    enum Kind : uint8_t { kRead, kWrite, kAtomic };
    uint32_t number = 0;
    uint32_t mask = 0;   // bytes of the block
    uint16_t unit = 0;  // core * kPipes + pipe
    Kind kind = kRead;
};

/// 32 bytes of local memory, which only its own core touches: the last write, and the last read of each pipe.
struct LocalBlock {
    uint32_t write = 0;  // number * 8 + pipe
    std::array<uint32_t, kPipes + 1> reads{};  // the last one stays 0, so that eight are compared at once
};

struct LocalMemory {
    std::vector<uint8_t> bytes;
    std::vector<uint8_t> written;  // by byte: 1 once it holds a value
    std::vector<LocalBlock> blocks;
    uint32_t used = 0;
};

/// 32 bytes of global memory: who has touched which of them since the last write of each byte.
struct GmBlock {
    std::array<Access, 3> few;
    uint32_t count = 0;
    std::unique_ptr<std::vector<Access>> many;  // in place of `few` once they do not fit
    uint64_t lastTime = 0;
    uint16_t lastWriter = 0;
};

constexpr uint32_t kPage = 4096;
using GmPage = std::array<GmBlock, kPage / kBlock>;

/// A registered range of global memory.
struct GmRange {
    enum Kind : uint8_t { kIn, kOut, kInOut, kWorkspace } kind;
    const char* name;
    uint8_t* data;
    size_t bytes;
    std::vector<uint8_t> written;                 // by byte; outputs and workspace
    std::vector<std::unique_ptr<GmPage>> pages;   // of whatever may be written; made when touched
    uint8_t* home = nullptr;                      // where an output is copied to at the end
    std::vector<uint8_t> storage;                 // red zone, data, red zone
    std::vector<uint64_t> touched;                // a bit per 32-byte block, while launches count
    std::array<uint64_t, 2> moved{};              // bytes read and written
    void Touch(size_t from, size_t bytes, bool writes);
    GmBlock& Block(size_t index);
};

struct Flag {
    bool set = false;
    Clock clock;
    Where where{nullptr, 0};
};

/// Mask that vector instructions with isSetMask=false obey: a bitmap of each repeat, or a number of elements.
struct VectorMask {
    bool counter = false;
    uint64_t high = ~uint64_t{0}, low = ~uint64_t{0};
    bool known = false;  // what the register holds: instructions that set their own mask leave something in it
    bool Default() const { return !counter && high == ~uint64_t{0} && low == ~uint64_t{0}; }
};

enum class Atomic : uint8_t { kOff, kAdd, kMax, kMin };

class Launch;

class Core {
public:
    Core(Launch& launch, uint32_t index, bool isVector, uint32_t block, uint32_t sub);

    Launch& launch;
    const uint32_t index;  // among all cores of the launch
    const bool isVector;
    const uint32_t block, sub;
    std::array<LocalMemory, kMemories> memories;
    std::array<Clock, kPipes> known;
    std::array<uint32_t, kPipes> issued{};
    std::array<std::vector<Where>, kPipes> lines;   // of the last instructions of each pipe
    std::array<uint64_t, kPipes> passedOn{};        // version of known[PIPE_S] that each pipe has
    std::array<std::array<std::array<Flag, kEvents>, kPipes>, kPipes> flags;
    std::array<uint8_t, 64> eventIds{};   // by HardEvent: ids that a pipe object has handed out
    std::array<uint8_t, 64> heldIds{};    // of these, allocated and not released
    std::unordered_map<uintptr_t, uint64_t> cleanedLines;
    std::unordered_set<uintptr_t> dirtyLines;
    void* pipe = nullptr;  // the live TPipe
    uint64_t generations = 0;
    VectorMask mask;
    float deqScale = 0.0f;  // of Cast int32 -> half
    bool hasDeqScale = false;
    Atomic atomic = Atomic::kOff;      // what DMA writes to global memory do
    const void* atomicType = nullptr;  // the type they were set for
    bool counting;                     // for a profile
    Counters counters;
    bool infNanBefore, infNan;  // bit 48 of the control register: when the kernel began, drawn from the seed, and now
    bool infNanSet = false;     // by the kernel
    bool stateSet = false;  // by a TPipe or InitSocState
    std::array<std::array<uint8_t, kPipes>, kPipes> queueEvents{};  // ids that queues hold for a pair of pipes
    std::string leak;  // first thing that a destructor found wrong

    uint16_t Unit(pipe_t pipe) const { return static_cast<uint16_t>(index * kPipes + pipe); }
    Clock Complete(pipe_t pipe) const;
    /// What a flag says that `pipe` sets now.
    void Tell(pipe_t pipe, Clock& clock) const;
    Where Line(pipe_t pipe, uint32_t number) const;
    void SetFlag(pipe_t source, pipe_t target, int32_t id, const Where& where);
    void WaitFlag(pipe_t source, pipe_t target, int32_t id, const Where& where);
    void Barrier(pipe_t pipe);
    /// A queue takes an event id for what EnQue or FreeTensor tells, and gives it back when the other side has heard.
    void TakeEvent(const char* name, pipe_t source, pipe_t target, const Where& where);
    void GiveEvent(pipe_t source, pipe_t target);
    void Forget(Memory memory, uint32_t from, uint32_t bytes);
    void CheckEnd();
};

Core& Current();
std::string Format(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void Fail(const char* instruction, const Where& where, const std::string& rule);

/// Generation of static tensors, which live as long as the kernel.
inline constexpr uint64_t kForever = 0;

/// What a tensor in local memory is: bytes [address, address + bytes) of a buffer, valid while the buffer's generation is.
struct LocalSpan {
    Memory memory = Memory::kUb;
    uint32_t address = 0;
    uint32_t bytes = 0;
    const uint64_t* live = nullptr;  // generation of the buffer now
    uint64_t generation = 0;         // and when the tensor was handed out
};

/// Bytes of local memory and, for each, whether it was ever written.
struct Peeked {
    const uint8_t* data;
    const uint8_t* written;
};

/// One instruction on one pipe: every byte it touches passes through here before it is used.
class Instruction {
public:
    Instruction(const char* name, pipe_t pipe, const Where& where);
    ~Instruction() {
        if (core_.counting && pipe_ == PIPE_V) CountVector();
    }
    Instruction(const Instruction&) = delete;
    Instruction& operator=(const Instruction&) = delete;

    [[noreturn]] void Fail(const std::string& rule) const { twin::Fail(name_, where_, rule); }
    void Require(bool condition, const char* format, ...) const __attribute__((format(printf, 3, 4)));
    /// Checked address of `bytes` bytes at `offset` of a local tensor. Reads must find written bytes.
    const uint8_t* Read(const LocalSpan& tensor, int64_t offset, uint32_t bytes, const char* operand);
    uint8_t* Write(const LocalSpan& tensor, int64_t offset, uint32_t bytes, const char* operand);
    /// A read that may find bytes nobody wrote: what happens to them is the instruction's matter.
    Peeked Peek(const LocalSpan& tensor, int64_t offset, uint32_t bytes, const char* operand);
    /// Of bytes that this instruction has written: where the twin keeps which of them hold a value.
    uint8_t* WrittenMap(const LocalSpan& tensor, int64_t offset);
    /// The pipe itself orders this instruction behind the ones before it.
    void RelyOnOwnPipe() { inOrder_ = true; }
    const uint8_t* ReadGm(const uint8_t* address, size_t bytes, const char* operand);
    uint8_t* WriteGm(uint8_t* address, size_t bytes, const char* operand, bool atomic = false);
    /// The rule of the scalar data cache, which nothing keeps coherent with global memory.
    void RequireFreshLine(const uint8_t* address);
    /// A scalar write loads its whole line, which goes back with whatever the neighbours held then.
    void TakeLine(const uint8_t* address);
    void Align(const LocalSpan& tensor, uint32_t bytes, const char* operand) const;
    /// For the profile: repeats of 256 bytes with so many lanes. Without it they follow from the bytes of the longest operand.
    void Repeats(uint32_t lanes, uint64_t repeats) const { lanes_ = lanes, repeats_ = repeats; }
    /// For the profile: products of elements of `width` bytes.
    void Multiplies(uint32_t width, uint64_t macs) const {
        if (core_.counting) core_.counters.macs[width] += macs, ++core_.counters.products;
    }
    Core& core() const { return core_; }

private:
    uint32_t Local(const LocalSpan& tensor, int64_t offset, uint32_t bytes, const char* operand, bool writes);
    uint8_t* Global(const uint8_t* address, size_t bytes, const char* operand, Access::Kind kind);
    void CountLocal(Memory memory, uint32_t from, uint32_t bytes, const char* operand, bool writes);
    void CountGlobal(GmRange& range, size_t from, size_t bytes, bool writes);
    void CountMove(Path path, size_t from, size_t bytes);
    void CountVector() const;
    bool Ordered(uint16_t unit, uint32_t number) const;
    [[noreturn]] void Hazard(const Access& before, const char* operand, const char* relation, const std::string& place) const;
    [[noreturn]] void LocalHazard(const LocalSpan& tensor, uint32_t block, const char* operand, bool writes) const;
    void TrackGm(GmRange& range, size_t from, size_t bytes, const char* operand, Access::Kind kind);
    void TrackBlock(GmBlock& block, const Access& mine, const char* operand, const GmRange& range, size_t index) const;

    Core& core_;
    const char* name_;
    pipe_t pipe_;
    Where where_;
    uint32_t number_;
    bool inOrder_ = false;
    mutable uint32_t lanes_ = 0;
    mutable uint64_t repeats_ = 0;
    std::array<std::pair<uintptr_t, uint64_t>, 5> operands_{};  // bytes read and written of each, by name
    bool moved_ = false;
    size_t movedTo_ = 0;
};

}  // namespace twin
