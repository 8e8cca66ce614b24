// Places in the order of a row's tokens, found by a block. In: a source of elements, a limit of count or
// mass. Out: the place at which the limit is reached. Knows nothing of requests.
//
// A place is found by radix descent: bits of a coordinate (the distance to the max, or the id), 11 at a
// time, with a histogram of counts and masses.
#pragma once

#include "sampling.cuh"

namespace {

constexpr uint32_t kBinBits = 11;
constexpr uint32_t kBins = 1 << kBinBits;
constexpr uint32_t kMaxListed = 2048;
constexpr float kUnits = 17592186044416.0f;  // 2^44 of them are the mass of the max
constexpr float kReach = 31.0f;              // exp(-31) is less than a unit

struct Element {
    float x;
    uint32_t token;
};

// A place in an order: what lies before it, and what shares it.
struct Place {
    uint32_t coordinate;
    uint32_t count_before, count;
    uint64_t mass_before, mass;
    // The mass up to the first element, of those that share the place, at which `limit` is reached.
    __device__ __forceinline__ uint64_t mass_at(uint64_t limit) const {
        const uint64_t each = mass / count;
        return mass_before + (limit - mass_before + each - 1) / each * each;
    }
};

struct Shared {
    uint32_t count[kBins];
    uint32_t mass_low[kBins], mass_high[kBins];
    Element listed[kMaxListed];
    uint32_t num_listed;
    uint32_t token;
    float raw;
    Place place;
    uint32_t warp_counts[kWarpSize];
    uint64_t warp_masses[kWarpSize];
};

struct Row {
    const float *logits;
    uint32_t vocab;
    bool aligned;
    float max;
    float inv_temperature;
    float floor;  // all below weigh nothing

    __device__ __forceinline__ uint64_t units(float x) const {
        const float mass = expf((x - max) * inv_temperature) * kUnits;
        return mass >= 1.0f ? static_cast<uint64_t>(mass) : 0;
    }
    // 0 for the largest. The key of -0 lies below that of +0, which may be there too.
    __device__ __forceinline__ uint32_t distance(float x) const {
        return ordered_key(max == 0.0f ? 0.0f : max) - ordered_key(x);
    }
};

// Sources: f(x, token) for all that could have mass, each by one thread.
struct WholeRow {
    Row row;
    template <typename F> __device__ __forceinline__ void for_each(const F &f) const {
        constexpr uint32_t kUnroll = 4;  // loads in flight
        for (uint32_t begin = threadIdx.x * 4; begin < row.vocab; begin += kUnroll * blockDim.x * 4) {
            float4 fours[kUnroll];
#pragma unroll
            for (uint32_t v = 0; v < kUnroll; ++v) {
                fours[v] = load_logits(row.logits, begin + v * blockDim.x * 4, row.vocab, row.aligned,
                                       -INFINITY);
            }
#pragma unroll
            for (uint32_t v = 0; v < kUnroll; ++v) {
                const float x[4] = {fours[v].x, fours[v].y, fours[v].z, fours[v].w};
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) {
                    if (x[i] >= row.floor) f(x[i], begin + v * blockDim.x * 4 + i);
                }
            }
        }
    }
};
struct Listed {
    const Element *elements;
    uint32_t num;
    template <typename F> __device__ __forceinline__ void for_each(const F &f) const {
        for (uint32_t i = threadIdx.x; i < num; i += blockDim.x) f(elements[i].x, elements[i].token);
    }
};

// What lies before a thread's own share, and all.
struct Prefix {
    uint32_t count, total_count;
    uint64_t mass, total_mass;
};
__device__ Prefix block_prefix(Shared &s, uint32_t count, uint64_t mass) {
    const int lane = lane_index(), warp = warp_index(), num_warps = blockDim.x / kWarpSize;
    uint32_t count_to = count;
    uint64_t mass_to = mass;
#pragma unroll
    for (int lanes = 1; lanes < kWarpSize; lanes *= 2) {
        const uint32_t more_count = __shfl_up_sync(kFullWarp, count_to, lanes);
        const uint64_t more_mass = __shfl_up_sync(kFullWarp, mass_to, lanes);
        if (lane >= lanes) {
            count_to += more_count;
            mass_to += more_mass;
        }
    }
    if (lane == kWarpSize - 1) {
        s.warp_counts[warp] = count_to;
        s.warp_masses[warp] = mass_to;
    }
    __syncthreads();
    Prefix prefix{count_to - count, 0, mass_to - mass, 0};
    for (int other = 0; other < num_warps; ++other) {
        if (other < warp) {
            prefix.count += s.warp_counts[other];
            prefix.mass += s.warp_masses[other];
        }
        prefix.total_count += s.warp_counts[other];
        prefix.total_mass += s.warp_masses[other];
    }
    return prefix;
}

__device__ __forceinline__ uint32_t shift_for(uint32_t last) {
    const uint32_t bits = 32 - __clz(static_cast<int>(last));
    return bits > kBinBits ? bits - kBinBits : 0;
}
__device__ __forceinline__ uint64_t bin_mass(const Shared &s, uint32_t bin) {
    return uint64_t{s.mass_high[bin]} << 32 | s.mass_low[bin];
}

// coordinate(x, token, &place, &mass): whether an element takes part, and as what. Those from `low` to
// `low + last` are counted, 2^shift coordinates a bin.
template <typename Source, typename Coordinate>
__device__ Prefix fill_bins(Shared &s, const Source &source, const Coordinate &coordinate, uint32_t low,
                            uint32_t last, uint32_t shift) {
    for (uint32_t bin = threadIdx.x; bin < kBins; bin += blockDim.x) {
        s.count[bin] = s.mass_low[bin] = s.mass_high[bin] = 0;
    }
    __syncthreads();
    source.for_each([&](float x, uint32_t token) {
        uint32_t at;
        uint64_t mass;
        if (!coordinate(x, token, at, mass) || at < low || at - low > last) return;
        const uint32_t bin = (at - low) >> shift;
        atomicAdd(&s.count[bin], 1u);
        // 64 bits as two native additions of 32: who wraps the lower half carries.
        const uint32_t mass_low = static_cast<uint32_t>(mass);
        const bool carries = atomicAdd(&s.mass_low[bin], mass_low) + mass_low < mass_low;
        const uint32_t mass_high = static_cast<uint32_t>(mass >> 32) + carries;
        if (mass_high != 0) atomicAdd(&s.mass_high[bin], mass_high);
    });
    __syncthreads();
    const uint32_t num_own = kBins / blockDim.x, begin = threadIdx.x * num_own;
    uint32_t count = 0;
    uint64_t mass = 0;
    for (uint32_t bin = begin; bin < begin + num_own; ++bin) {
        count += s.count[bin];
        mass += bin_mass(s, bin);
    }
    return block_prefix(s, count, mass);
}

// The bin at which the count or the mass reaches `limit`, which is 1 or more and at most the total.
__device__ Place find_bin(Shared &s, const Prefix &prefix, bool by_count, uint64_t limit) {
    const uint32_t num_own = kBins / blockDim.x, begin = threadIdx.x * num_own;
    uint32_t count = prefix.count;
    uint64_t mass = prefix.mass;
    for (uint32_t bin = begin; bin < begin + num_own; ++bin) {
        const uint32_t own_count = s.count[bin];
        const uint64_t own_mass = bin_mass(s, bin);
        const uint64_t before = by_count ? count : mass, own = by_count ? own_count : own_mass;
        if (before < limit && limit <= before + own) {
            s.place = {bin, count, own_count, mass, own_mass};
        }
        count += own_count;
        mass += own_mass;
    }
    __syncthreads();
    return s.place;
}

// The coordinate at which the count or the mass reaches `limit`.
template <typename Source, typename Coordinate>
__device__ Place find(Shared &s, const Source &source, const Coordinate &coordinate, uint32_t last,
                      bool by_count, uint64_t limit) {
    Place place{0, 0, 0, 0, 0};
    for (;;) {
        const uint32_t shift = shift_for(last);
        const Prefix prefix = fill_bins(s, source, coordinate, place.coordinate, last, shift);
        const uint64_t before = by_count ? place.count_before : place.mass_before;
        const Place bin = find_bin(s, prefix, by_count, limit - before);
        place = {place.coordinate + (bin.coordinate << shift), place.count_before + bin.count_before,
                 bin.count, place.mass_before + bin.mass_before, bin.mass};
        if (shift == 0) return place;
        last = (1u << shift) - 1;
    }
}

}  // namespace
