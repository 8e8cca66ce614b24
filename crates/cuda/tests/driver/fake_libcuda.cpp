// A libcuda.so without a GPU: what the real driver calls, over host memory and the emulated kernels.
// Streams are as lazy as CUDA allows: work runs when somebody waits for it, or is asked for its
// progress, and not before. So memory that is used again too early, or a stream that should have waited
// for another, shows. In: WEFT_FAKE_KERNELS, the library of emulated kernels; WEFT_FAKE_DEVICES,
// WEFT_FAKE_VERSION, WEFT_FAKE_CAPABILITY, WEFT_FAKE_FREE_MIB. Out: the list of calls, fake_calls().
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace {

enum Result {
    kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNoDevice = 100, kInvalidDevice = 101,
    kInvalidImage = 200, kInvalidContext = 201, kInvalidHandle = 400, kNotFound = 500, kNotReady = 600,
    kIllegalAddress = 700, kCaptureUnsupported = 900, kCaptureInvalidated = 901,
};
constexpr size_t kUnaskedShared = 48 << 10;
constexpr size_t kAlignment = 256;

struct Stream;
struct Event {
    Stream *stream = nullptr;  // where it is under way
    bool timed = false;
};
struct Work {
    std::function<void()> run;
    Event *event = nullptr;
};
struct Graph {
    std::vector<std::function<void()>> launches;
};
struct Stream {
    std::deque<Work> work;
    Graph *capture = nullptr;
    bool is_invalidated = false;
};
struct Function {
    std::string name;
    int index;
    size_t allowed_shared = kUnaskedShared;
};

std::recursive_mutex lock;
std::string calls;
std::vector<Stream *> streams;
std::map<uint64_t, size_t> allocations;
std::map<uintptr_t, size_t> pinned;
long pins_left = -1;  // any number
int num_contexts = 0;
Result sticky = kSuccess;
thread_local bool is_current = false;
thread_local int capture_mode = 0;
thread_local bool is_capturing = false;

long number(const char *variable, long otherwise) {
    const char *text = std::getenv(variable);
    return text == nullptr ? otherwise : std::atol(text);
}
size_t all_bytes() { return size_t{8} << 30; }
size_t free_bytes() {
    size_t free = static_cast<size_t>(number("WEFT_FAKE_FREE_MIB", 4096)) << 20;
    for (const auto &[start, num_bytes] : allocations) free -= num_bytes;
    return free;
}

void *kernels() {
    static void *library = dlopen(std::getenv("WEFT_FAKE_KERNELS"), RTLD_NOW);
    return library;
}
template <typename F> F emulated(const char *name) { return reinterpret_cast<F>(dlsym(kernels(), name)); }

void run_first(Stream &stream) {
    Work work = std::move(stream.work.front());
    stream.work.pop_front();
    if (sticky == kSuccess && work.run) work.run();
    if (work.event != nullptr && work.event->stream == &stream) {
        for (const Work &later : stream.work) {
            if (later.event == work.event) return;  // recorded anew
        }
        work.event->stream = nullptr;
    }
}
void run_all(Stream &stream) {
    while (!stream.work.empty()) run_first(stream);
}
void run_until(Event &event) {
    while (event.stream != nullptr) run_first(*event.stream);
}

Result log(const std::string &call, bool needs_context = true) {
    calls += call + "\n";
    if (sticky != kSuccess) return sticky;
    return needs_context && !is_current ? kInvalidContext : kSuccess;
}

// What a thread that records launches must not call.
Result log_unsafe(const std::string &call) {
    const Result result = log(call);
    return result == kSuccess && is_capturing && capture_mode != 2 ? kCaptureUnsupported : result;
}

// Which memory an address is in.
std::string place_of(const void *address) {
    const auto start = reinterpret_cast<uintptr_t>(address);
    auto block = pinned.upper_bound(start);
    if (block == pinned.begin()) return "pageable memory";
    --block;
    if (start >= block->first + block->second) return "pageable memory";
    return std::to_string(block->second) + " pinned";
}

Result enqueue(Stream *stream, std::function<void()> run, Event *event = nullptr) {
    if (stream->capture != nullptr) {
        stream->is_invalidated = true;
        return kCaptureUnsupported;
    }
    stream->work.push_back({std::move(run), event});
    return kSuccess;
}

}  // namespace

#define CALL(declaration) extern "C" Result declaration
#define BEGIN(result)                                                                           \
    const std::lock_guard<std::recursive_mutex> guard(lock);                                    \
    if (const Result begun = (result)) return begun

extern "C" const char *fake_calls() { return calls.c_str(); }
extern "C" void fake_forget_calls() { calls.clear(); }
// What nobody gave back.
extern "C" size_t fake_leaks() { return allocations.size() + pinned.size() + streams.size() + num_contexts; }
// After so many, no more memory can be pinned.
extern "C" void fake_allow_pins(long number) { pins_left = number; }

CALL(cuInit(unsigned)) {
    BEGIN(log("init", false));
    return number("WEFT_FAKE_DEVICES", 1) == 0 ? kNoDevice : kSuccess;
}
CALL(cuDriverGetVersion(int *version)) {
    *version = static_cast<int>(number("WEFT_FAKE_VERSION", 13000));
    return kSuccess;
}
CALL(cuGetErrorString(int error, const char **text)) {
    *text = error == kIllegalAddress ? "an illegal memory access was encountered" : "it did not work";
    return kSuccess;
}
CALL(cuDeviceGetCount(int *count)) {
    *count = static_cast<int>(number("WEFT_FAKE_DEVICES", 1));
    return kSuccess;
}
CALL(cuDeviceGet(int *device, int ordinal)) {
    *device = ordinal;
    return kSuccess;
}
CALL(cuDeviceGetName(char *name, int length, int)) {
    std::snprintf(name, length, "fake GPU");
    return kSuccess;
}
CALL(cuDeviceTotalMem_v2(size_t *bytes, int)) {
    *bytes = all_bytes();
    return kSuccess;
}
CALL(cuDeviceGetAttribute(int *value, int attribute, int)) {
    const int capability = static_cast<int>(number("WEFT_FAKE_CAPABILITY", 90));
    *value = attribute == 75 ? capability / 10 : attribute == 76 ? capability % 10 : 132;
    return kSuccess;
}
CALL(cuDevicePrimaryCtxRetain(void **context, int)) {
    BEGIN(log("retain", false));
    ++num_contexts;
    *context = &num_contexts;
    return kSuccess;
}
CALL(cuDevicePrimaryCtxRelease_v2(int)) {
    BEGIN(log("release", false));
    --num_contexts;
    return kSuccess;
}
CALL(cuCtxSetCurrent(void *context)) {
    is_current = context == &num_contexts && num_contexts > 0;
    return is_current ? kSuccess : kInvalidContext;
}
CALL(cuThreadExchangeStreamCaptureMode(int *mode)) {
    std::swap(*mode, capture_mode);
    return kSuccess;
}

CALL(cuMemGetInfo_v2(size_t *free, size_t *total)) {
    BEGIN(log("memory"));
    *free = free_bytes(), *total = all_bytes();
    return kSuccess;
}
CALL(cuMemAlloc_v2(uint64_t *address, size_t num_bytes)) {
    BEGIN(log_unsafe("alloc " + std::to_string(num_bytes)));
    if (num_bytes > free_bytes()) return kOutOfMemory;
    const size_t rounded = (num_bytes + kAlignment - 1) / kAlignment * kAlignment;
    void *memory = std::aligned_alloc(kAlignment, rounded);
    std::memset(memory, 0xff, rounded);
    *address = reinterpret_cast<uint64_t>(memory);
    allocations[*address] = num_bytes;
    return kSuccess;
}
CALL(cuMemFree_v2(uint64_t address)) {
    BEGIN(log_unsafe("free"));
    for (const Stream *stream : streams) {
        if (!stream->work.empty()) calls += "free before the work has ended\n";
    }
    if (allocations.erase(address) == 0) return kInvalidValue;
    std::free(reinterpret_cast<void *>(address));
    return kSuccess;
}
CALL(cuMemHostAlloc(void **memory, size_t num_bytes, unsigned)) {
    BEGIN(log_unsafe("pin " + std::to_string(num_bytes)));
    if (pins_left == 0) return kOutOfMemory;
    if (pins_left > 0) --pins_left;
    *memory = std::malloc(num_bytes);
    std::memset(*memory, 0xff, num_bytes);
    pinned[reinterpret_cast<uintptr_t>(*memory)] = num_bytes;
    return kSuccess;
}
CALL(cuMemFreeHost(void *memory)) {
    BEGIN(log("unpin"));
    const auto block = pinned.find(reinterpret_cast<uintptr_t>(memory));
    if (block == pinned.end()) return kInvalidValue;
    std::memset(memory, 0xdd, block->second);  // so that a late copy shows
    pinned.erase(block);
    std::free(memory);
    return kSuccess;
}
CALL(cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t num_bytes, Stream *stream)) {
    BEGIN(log("upload " + std::to_string(num_bytes) + " from " + place_of(from)));
    return enqueue(stream, [=] { std::memcpy(reinterpret_cast<void *>(to), from, num_bytes); });
}
CALL(cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t num_bytes, Stream *stream)) {
    BEGIN(log("download " + std::to_string(num_bytes)));
    return enqueue(stream, [=] { std::memcpy(to, reinterpret_cast<const void *>(from), num_bytes); });
}

CALL(cuStreamCreate(Stream **stream, unsigned flags)) {
    BEGIN(log("stream"));
    if (flags != 1) return kInvalidValue;  // waits for the default stream
    streams.push_back(*stream = new Stream);
    return kSuccess;
}
CALL(cuStreamDestroy_v2(Stream *stream)) {
    BEGIN(log("destroy stream"));
    for (size_t i = 0; i < streams.size(); ++i) {
        if (streams[i] == stream) streams.erase(streams.begin() + i);
    }
    delete stream;
    return kSuccess;
}
CALL(cuStreamSynchronize(Stream *stream)) {
    BEGIN(log("synchronize"));
    if (stream->capture != nullptr) return enqueue(stream, {});
    run_all(*stream);
    return sticky;
}
CALL(cuStreamWaitEvent(Stream *stream, Event *event, unsigned)) {
    BEGIN(log("wait"));
    return enqueue(stream, [=] { run_until(*event); });
}

CALL(cuEventCreate(Event **event, unsigned flags)) {
    BEGIN(log("event"));
    *event = new Event;
    (*event)->timed = flags == 0;
    return kSuccess;
}
CALL(cuEventDestroy_v2(Event *event)) {
    delete event;
    return kSuccess;
}
CALL(cuEventRecord(Event *event, Stream *stream)) {
    BEGIN(log("record"));
    const Result result = enqueue(stream, {}, event);
    if (result == kSuccess) event->stream = stream;
    return result;
}
CALL(cuEventQuery(Event *event)) {
    BEGIN(log("query"));
    if (event->stream == nullptr) return kSuccess;
    run_first(*event->stream);
    return sticky != kSuccess ? sticky : kNotReady;
}
CALL(cuEventSynchronize(Event *event)) {
    BEGIN(log("wait for event"));
    run_until(*event);
    return sticky;
}
CALL(cuEventElapsedTime(float *milliseconds, Event *from, Event *to)) {
    BEGIN(log("elapsed"));
    if (!from->timed || !to->timed) return kInvalidHandle;
    if (from->stream != nullptr || to->stream != nullptr) return kNotReady;
    *milliseconds = 1.5f;
    return kSuccess;
}

CALL(cuModuleLoadData(void **module, const void *image)) {
    BEGIN(log_unsafe("load"));
    uint32_t magic;
    std::memcpy(&magic, image, 4);
    if (magic != 0xba55ed50u || reinterpret_cast<uintptr_t>(image) % 8 != 0) return kInvalidImage;
    *module = const_cast<void *>(image);
    return kSuccess;
}
CALL(cuModuleUnload(void *)) { return log("unload"); }
CALL(cuModuleGetFunction(Function **function, void *, const char *name)) {
    BEGIN(log_unsafe(std::string("find ") + name));
    const int index = emulated<int (*)(const char *)>("weft_emulated_find")(name);
    if (index < 0) return kNotFound;
    *function = new Function{name, index};
    return kSuccess;
}
CALL(cuFuncGetAttribute(int *value, int, Function *)) {
    *value = 128;
    return kSuccess;
}
CALL(cuFuncSetAttribute(Function *function, int attribute, int value)) {
    BEGIN(log_unsafe("allow " + std::to_string(value)));
    if (attribute != 8 || value > 227 * 1024) return kInvalidValue;
    function->allowed_shared = value;
    return kSuccess;
}
CALL(cuFuncGetParamInfo(Function *function, size_t, size_t *offset, size_t *num_bytes)) {
    *offset = 0;
    *num_bytes = emulated<size_t (*)(int)>("weft_emulated_param_bytes")(function->index);
    return kSuccess;
}
CALL(cuLaunchKernel(Function *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned,
                    unsigned, unsigned shared_bytes, Stream *stream, void **arguments, void **)) {
    BEGIN(log("launch " + function->name));
    if (shared_bytes > function->allowed_shared || x == 0) return kInvalidValue;
    size_t offset, num_bytes;
    cuFuncGetParamInfo(function, 0, &offset, &num_bytes);
    const auto *start = static_cast<const unsigned char *>(arguments[0]);
    const std::vector<unsigned char> params(start, start + num_bytes);
    const std::function<void()> run = [=] {
        const unsigned grid[3] = {x, y, z}, block[3] = {threads, 1, 1};
        char message[512];
        using Launch = int (*)(int, const unsigned *, const unsigned *, size_t, const void *, size_t,
                               uint64_t, char *, size_t);
        const int code = emulated<Launch>("weft_emulated_launch")(function->index, grid, block, shared_bytes,
                                                                  params.data(), params.size(), 0, message,
                                                                  sizeof(message));
        if (code != 0) sticky = kIllegalAddress;
    };
    if (stream->capture == nullptr) return enqueue(stream, run);
    stream->capture->launches.push_back(run);
    return kSuccess;
}

CALL(cuStreamBeginCapture_v2(Stream *stream, int mode)) {
    BEGIN(log("begin capture"));
    if (mode != 1 || stream->capture != nullptr) return kInvalidValue;
    stream->capture = new Graph;
    is_capturing = true;
    return kSuccess;
}
CALL(cuStreamEndCapture(Stream *stream, Graph **graph)) {
    BEGIN(log("end capture"));
    *graph = stream->capture;
    const bool was_invalidated = stream->is_invalidated;
    stream->capture = nullptr;
    stream->is_invalidated = is_capturing = false;
    return was_invalidated ? kCaptureInvalidated : kSuccess;
}
CALL(cuGraphInstantiateWithFlags(Graph **executable, Graph *graph, unsigned long long)) {
    BEGIN(log("instantiate " + std::to_string(graph->launches.size())));
    *executable = new Graph(*graph);
    return kSuccess;
}
CALL(cuGraphDestroy(Graph *graph)) {
    delete graph;
    return log("destroy graph");
}
CALL(cuGraphExecDestroy(Graph *graph)) {
    delete graph;
    return log("destroy executable");
}
CALL(cuGraphUpload(Graph *, Stream *)) { return log("upload graph"); }
CALL(cuGraphLaunch(Graph *graph, Stream *stream)) {
    BEGIN(log("replay"));
    return enqueue(stream, [launches = graph->launches] {
        for (const auto &launch : launches) launch();
    });
}
