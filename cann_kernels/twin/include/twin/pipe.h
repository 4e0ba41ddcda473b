// SPDX-License-Identifier: Apache-2.0
// Local memory, queues and synchronisation.
#pragma once

#include <deque>
#include <memory>

#include "twin/tensor.h"

namespace AscendC {

constexpr twin::Memory MemoryOf(TPosition position) {
    switch (position) {
        case TPosition::A1: case TPosition::B1: case TPosition::C1: return twin::Memory::kL1;
        case TPosition::A2: return twin::Memory::kL0a;
        case TPosition::B2: return twin::Memory::kL0b;
        case TPosition::CO1: return twin::Memory::kL0c;
        default: return twin::Memory::kUb;
    }
}

/// The pipe that fills a queue at a position and the pipe that empties it.
constexpr pipe_t ProducerOf(TPosition position) {
    switch (position) {
        case TPosition::VECIN: case TPosition::A1: case TPosition::B1: return PIPE_MTE2;
        case TPosition::A2: case TPosition::B2: return PIPE_MTE1;
        case TPosition::CO1: return PIPE_M;
        default: return PIPE_V;
    }
}
constexpr pipe_t ConsumerOf(TPosition position) {
    switch (position) {
        case TPosition::A1: case TPosition::B1: return PIPE_MTE1;
        case TPosition::A2: case TPosition::B2: return PIPE_M;
        case TPosition::CO1: return PIPE_FIX;
        case TPosition::VECOUT: return PIPE_MTE3;
        default: return PIPE_V;
    }
}

struct EventPipes {
    pipe_t source, target;
};

constexpr EventPipes PipesOf(HardEvent event) {
    constexpr EventPipes pipes[] = {{PIPE_MTE2, PIPE_MTE1}, {PIPE_MTE1, PIPE_MTE2}, {PIPE_MTE1, PIPE_M}, {PIPE_M, PIPE_MTE1},
        {PIPE_MTE2, PIPE_V}, {PIPE_V, PIPE_MTE2}, {PIPE_MTE3, PIPE_V}, {PIPE_V, PIPE_MTE3}, {PIPE_V, PIPE_V}, {PIPE_M, PIPE_FIX},
        {PIPE_FIX, PIPE_M}, {PIPE_MTE3, PIPE_MTE2}, {PIPE_MTE2, PIPE_MTE3}, {PIPE_S, PIPE_V}, {PIPE_V, PIPE_S}, {PIPE_S, PIPE_MTE2},
        {PIPE_MTE2, PIPE_S}, {PIPE_S, PIPE_MTE3}, {PIPE_MTE3, PIPE_S}, {PIPE_MTE2, PIPE_FIX}, {PIPE_FIX, PIPE_MTE2},
        {PIPE_FIX, PIPE_S}, {PIPE_M, PIPE_S}};
    return pipes[static_cast<uint32_t>(event)];
}

/// One buffer of a queue or a TBuf.
struct TwinBuffer {
    enum State : uint8_t { kFree, kAllocated, kQueued, kTaken, kRetired } state = kFree;
    twin::Memory memory = twin::Memory::kUb;
    uint32_t address = 0, bytes = 0;
    uint64_t generation = 0;
    twin::Clock ready, released;  // what EnQue and FreeTensor tell
    twin::Where where{nullptr, 0};

    template <typename T>
    LocalTensor<T> Tensor() const {
        return LocalTensor<T>(twin::LocalSpan{memory, address, bytes, &generation, generation});
    }
};

template <TPosition src, TPosition dst, int32_t depth, auto mask = 0>
class TQueBind {
public:
    static constexpr pipe_t kProducer = ProducerOf(src), kConsumer = ConsumerOf(dst);
    static constexpr twin::Memory kMemory = MemoryOf(src);

    template <typename T>
    LocalTensor<T> AllocTensor(const twin::Where& where = twin::Where::Here()) {
        twin::Core& core = twin::Current();
        // Buffers are handed out in turn, so that two of them overlap what one would put in order.
        for (size_t tried = 0; tried < buffers_->size(); ++tried) {
            TwinBuffer& buffer = (*buffers_)[next_++ % buffers_->size()];
            if (buffer.state != TwinBuffer::kFree) continue;
            buffer.state = TwinBuffer::kAllocated, buffer.where = where;
            if (!buffer.released.seen.empty()) {
                core.known[kProducer].Join(buffer.released);
                core.GiveEvent(kConsumer, kProducer);
            }
            return buffer.Tensor<T>();
        }
        twin::Fail("AllocTensor", where, twin::Format("all %zu buffers of the queue are in use; a FreeTensor is missing, or InitBuffer "
                                                      "was given too few", buffers_->size()));
    }

    template <typename T>
    bool EnQue(const LocalTensor<T>& tensor, const twin::Where& where = twin::Where::Here()) {
        TwinBuffer& buffer = Find("EnQue", tensor.span(), TwinBuffer::kAllocated, where);
        if (static_cast<int32_t>(queue_.size()) >= (depth == 0 ? 1 : depth)) {
            twin::Fail("EnQue", where, twin::Format("%zu tensors are queued already, depth is %d", queue_.size(), depth));
        }
        twin::Core& core = twin::Current();
        buffer.state = TwinBuffer::kQueued, buffer.where = where;
        core.TakeEvent("EnQue", kProducer, kConsumer, where);
        core.Tell(kProducer, buffer.ready);
        queue_.push_back(&buffer);
        return true;
    }

    template <typename T>
    LocalTensor<T> DeQue(const twin::Where& where = twin::Where::Here()) {
        if (queue_.empty()) twin::Fail("DeQue", where, "nothing was enqueued: the pipe would wait for ever");
        TwinBuffer& buffer = *queue_.front();
        queue_.pop_front();
        buffer.state = TwinBuffer::kTaken, buffer.where = where;
        twin::Current().known[kConsumer].Join(buffer.ready);
        twin::Current().GiveEvent(kProducer, kConsumer);
        return buffer.Tensor<T>();
    }

    template <typename T>
    void FreeTensor(const LocalTensor<T>& tensor, const twin::Where& where = twin::Where::Here()) {
        const twin::LocalSpan& span = tensor.span();
        TwinBuffer& buffer = Find("FreeTensor", span, TwinBuffer::kTaken, where);
        twin::Core& core = twin::Current();
        core.TakeEvent("FreeTensor", kConsumer, kProducer, where);
        core.Tell(kConsumer, buffer.released);
        buffer.state = TwinBuffer::kFree;
        ++buffer.generation;
        core.Forget(buffer.memory, buffer.address, buffer.bytes);
    }

private:
    friend class TPipe;

    TwinBuffer& Find(const char* name, const twin::LocalSpan& span, TwinBuffer::State wanted, const twin::Where& where) {
        for (TwinBuffer& buffer : *buffers_) {
            if (&buffer.generation != span.live || span.generation != buffer.generation) continue;
            if (buffer.state == wanted) return buffer;
            constexpr const char* states[] = {"free", "allocated", "enqueued", "dequeued"};
            twin::Fail(name, where, twin::Format("the tensor must be %s, it is %s", states[wanted], states[buffer.state]));
        }
        twin::Fail(name, where, "the tensor does not come from this queue, or was freed before");
    }

    std::shared_ptr<std::deque<TwinBuffer>> buffers_ = std::make_shared<std::deque<TwinBuffer>>();  // outlives the queue for the leak check
    std::deque<TwinBuffer*> queue_;
    size_t next_ = 0;
};

template <TPosition pos, int32_t depth, auto mask = 0>
class TQue : public TQueBind<pos, pos, depth, mask> {};

template <TPosition pos = TPosition::LCM>
class TBuf {
public:
    template <typename T>
    LocalTensor<T> Get() {
        return buffer_.Tensor<T>();
    }
    template <typename T>
    LocalTensor<T> Get(uint32_t len) {
        LocalTensor<T> tensor = Get<T>();
        tensor.SetSize(len);
        return tensor;
    }
    template <typename T>
    LocalTensor<T> GetWithOffset(uint32_t size, uint32_t bufOffset) {
        LocalTensor<T> tensor = buffer_.Tensor<uint8_t>()[bufOffset].template ReinterpretCast<T>();
        tensor.SetSize(size);
        return tensor;
    }

private:
    friend class TPipe;
    TwinBuffer buffer_;
};

class TPipe {
public:
    explicit TPipe(const twin::Where& where = twin::Where::Here()) : core_(twin::Current()) {
        if (core_.pipe != nullptr) twin::Fail("TPipe", where, "another TPipe is alive; one per kernel at a time");
        core_.pipe = this;
        core_.stateSet = true;
        Hold();
    }
    ~TPipe() { Destroy(); }
    TPipe(const TPipe&) = delete;
    TPipe& operator=(const TPipe&) = delete;

    /// Takes every buffer back, so that the memory can be laid out anew. Tensors and queues from before are dead.
    void Reset() {
        for (const auto& queue : queues_) {
            for (TwinBuffer& buffer : *queue) Check(buffer), ++buffer.generation, buffer.state = TwinBuffer::kRetired;
        }
        queues_.clear();
        for (uint32_t memory = 0; memory < twin::kMemories; ++memory) core_.memories[memory].used = 0;
        core_.queueEvents = {};
        Hold();
        buffers_ = 0;
    }

    /// Ends this TPipe; another may follow.
    void Destroy() {
        if (core_.pipe != this) return;
        Reset();
        core_.Barrier(PIPE_ALL);
        if (!core_.isVector) core_.heldIds[kOwnEvent] &= static_cast<uint8_t>(~kOwnIds);
        core_.pipe = nullptr;
    }

    template <typename Queue>
    bool InitBuffer(Queue& queue, uint8_t num, uint32_t len, const twin::Where& where = twin::Where::Here()) {
        if (num == 0 || len == 0) twin::Fail("InitBuffer", where, twin::Format("%u buffers of %u bytes", num, len));
        for (uint8_t i = 0; i < num; ++i) Place(queue.buffers_->emplace_back(), Queue::kMemory, len, where);
        queues_.push_back(queue.buffers_);
        return true;
    }
    template <TPosition pos>
    bool InitBuffer(TBuf<pos>& buffer, uint32_t len, const twin::Where& where = twin::Where::Here()) {
        if (len == 0) twin::Fail("InitBuffer", where, "a buffer of 0 bytes");
        Place(buffer.buffer_, MemoryOf(pos), len, where);
        return true;
    }

    template <HardEvent event>
    TEventID AllocEventID(const twin::Where& where = twin::Where::Here()) {
        const TEventID id = Free(event, "AllocEventID", where);
        core_.heldIds[static_cast<uint32_t>(event)] |= static_cast<uint8_t>(1u << id);
        return id;
    }
    template <HardEvent event>
    void ReleaseEventID(TEventID id, const twin::Where& where = twin::Where::Here()) {
        uint8_t& held = core_.heldIds[static_cast<uint32_t>(event)];
        if (id < 0 || (held >> id & 1u) == 0) twin::Fail("ReleaseEventID", where, twin::Format("id %d is not held", id));
        held &= static_cast<uint8_t>(~(1u << id));
    }
    TEventID FetchEventID(HardEvent event, const twin::Where& where = twin::Where::Here()) { return Free(event, "FetchEventID", where); }
    template <HardEvent event>
    TEventID FetchEventID(const twin::Where& where = twin::Where::Here()) {
        return Free(event, "FetchEventID", where);
    }

private:
    /// On the cube core the device's TPipe keeps the first three ids of M_MTE1, and has set them.
    static constexpr uint32_t kOwnEvent = static_cast<uint32_t>(HardEvent::M_MTE1);
    static constexpr uint8_t kOwnIds = 0b111;

    void Hold() {
        if (core_.isVector) return;
        core_.heldIds[kOwnEvent] |= kOwnIds;
        core_.queueEvents[PIPE_M][PIPE_MTE1] = 3;
    }

    void Check(const TwinBuffer& buffer) {
        constexpr const char* states[] = {"free", "allocated and never enqueued", "enqueued and never dequeued", "never freed"};
        if (buffer.state == TwinBuffer::kFree || buffer.state == TwinBuffer::kRetired || !core_.leak.empty()) return;
        core_.leak = twin::Format("a queue buffer is %s when the TPipe ends; last touched at line %d", states[buffer.state], buffer.where.line);
    }

    TEventID Free(HardEvent event, const char* name, const twin::Where& where) {
        const auto [source, target] = PipesOf(event);
        for (TEventID id = 0; id < 6; ++id) {
            if ((core_.heldIds[static_cast<uint32_t>(event)] >> id & 1u) != 0 || core_.flags[source][target][id].set) continue;
            core_.eventIds[static_cast<uint32_t>(event)] |= static_cast<uint8_t>(1u << id);
            return id;
        }
        twin::Fail(name, where, "all event ids of this pair of pipes are held");
    }

    void Place(TwinBuffer& buffer, twin::Memory memory, uint32_t len, const twin::Where& where) {
        const uint32_t index = static_cast<uint32_t>(memory);
        twin::LocalMemory& local = core_.memories[index];
        if (local.bytes.empty()) twin::Fail("InitBuffer", where, twin::Format("this core has no %s", twin::Name(memory)));
        const uint32_t bytes = (len + 31) / 32 * 32, limit = twin::kMemoryBytes[index] - (memory == twin::Memory::kUb ? twin::kUbReserved : 0);
        if (bytes > limit - local.used) {
            twin::Fail("InitBuffer", where, twin::Format("%s overflow: %u bytes wanted, %u of %u are taken", twin::Name(memory), bytes,
                                                         local.used, limit));
        }
        if (++buffers_ > 64) twin::Fail("InitBuffer", where, "more than 64 buffers");
        buffer.memory = memory, buffer.address = local.used, buffer.bytes = bytes, buffer.generation = 1;
        local.used += bytes;
        core_.Forget(memory, buffer.address, bytes);
    }

    twin::Core& core_;
    uint32_t buffers_ = 0;
    std::vector<std::shared_ptr<std::deque<TwinBuffer>>> queues_;
};

template <HardEvent event>
void SetFlag(int32_t eventID, const twin::Where& where = twin::Where::Here()) {
    constexpr EventPipes pipes = PipesOf(event);
    twin::Core& core = twin::Current();
    if (core.pipe != nullptr && eventID >= 0 && eventID < 8 && (core.eventIds[static_cast<uint32_t>(event)] >> eventID & 1u) == 0) {
        twin::Fail("SetFlag", where, twin::Format("id %d was not handed out by the TPipe, whose queues use ids too; take one with "
                                                  "FetchEventID or AllocEventID", eventID));
    }
    core.SetFlag(pipes.source, pipes.target, eventID, where);
}

template <HardEvent event>
void WaitFlag(int32_t eventID, const twin::Where& where = twin::Where::Here()) {
    constexpr EventPipes pipes = PipesOf(event);
    twin::Current().WaitFlag(pipes.source, pipes.target, eventID, where);
}

template <pipe_t pipe>
void PipeBarrier() {
    static_assert(pipe != PIPE_S, "PIPE_S is in order by itself");
    twin::Current().counters.Note(twin::Event::kBarrier);
    twin::Current().Barrier(pipe);
}

template <bool isAIVOnly = true>
void SyncAll(const twin::Where& where = twin::Where::Here()) {
    twin::Core& core = twin::Current();
    core.launch.SyncAll(core, isAIVOnly, where);
}

/// The same barrier through counters in global memory: 32 bytes a core, zero before the first call.
template <bool isAIVOnly = true>
void SyncAll(const GlobalTensor<int32_t>& gmWorkspace, const LocalTensor<int32_t>& ubWorkspace, const int32_t usedCores = 0,
             const twin::Where& where = twin::Where::Here()) {
    twin::Core& core = twin::Current();
    core.launch.SoftSyncAll(core, const_cast<uint8_t*>(twin::HostBytes(gmWorkspace.GetPhyAddr())), ubWorkspace.GetSize() * sizeof(int32_t), usedCores,
                            isAIVOnly, where);
}

template <uint8_t modeId, pipe_t pipe>
void CrossCoreSetFlag(uint16_t flagId, const twin::Where& where = twin::Where::Here()) {
    static_assert(modeId <= 2, "modes 0, 1 and 2 exist on 2201");
    static_assert(pipe != PIPE_S && pipe != PIPE_ALL, "a set needs a pipe that works: V, M, MTE1, MTE2, MTE3 or FIX");
    twin::Core& core = twin::Current();
    core.launch.CrossSet(core, modeId, pipe, flagId, where);
}

template <uint8_t modeId = 0, pipe_t pipe = PIPE_S>
void CrossCoreWaitFlag(uint16_t flagId, const twin::Where& where = twin::Where::Here()) {
    static_assert(modeId <= 2, "modes 0, 1 and 2 exist on 2201");
    twin::Core& core = twin::Current();
    core.launch.CrossWait(core, modeId, pipe, flagId, where);
}

}  // namespace AscendC

inline AscendC::TPipe* GetTPipePtr() { return static_cast<AscendC::TPipe*>(twin::Current().pipe); }
