// In: logits after sample_scan, its partials. Out: a row's token and log probabilities. A block is a row.
//
// Greedy: the first of the largest. Nothing truncated: the slice in which u * mass falls, then the token
// within it, in the order of ids. Else the token at u * mass of what top-k, top-p and min-p keep, by
// logit descending, then id ascending: each of the three keeps a prefix of that order, so what all keep
// is the shortest of them, and only its mass is needed.
//
// The first histogram (select.cuh) reads the whole row; what could be kept then fits into shared memory,
// unless the distribution is very flat.
#include "select.cuh"

namespace {

constexpr uint32_t kMaxThreads = 1024;
constexpr uint32_t kOwnSlices = kMaxSlices / kWarpSize;

// The mass that top-p keeps of `mass`: as much as reaches top_p of it.
__device__ __forceinline__ uint64_t top_p_limit(float top_p, uint64_t mass) {
    const auto limit = static_cast<uint64_t>(ceil(static_cast<double>(top_p) * static_cast<double>(mass)));
    return limit < 1 ? 1 : limit > mass ? mass : limit;
}
__device__ __forceinline__ uint64_t target_of(double u, uint64_t mass) {
    const auto target = static_cast<uint64_t>(u * static_cast<double>(mass));
    return target < mass ? target : mass - 1;
}

// The token at u of what is kept. `total`: count and mass of all, `last`: the largest distance.
template <typename Source>
__device__ uint32_t choose(Shared &s, const Source &source, const Row &row, const SamplingRow &params,
                           const Prefix &total, uint32_t last) {
    const auto by_distance = [&](float x, uint32_t, uint32_t &at, uint64_t &mass) {
        at = row.distance(x);
        mass = row.units(x);
        return mass != 0;
    };
    uint64_t kept = total.total_mass;
    if (params.top_k != 0 && params.top_k < total.total_count) {
        const Place place = find(s, source, by_distance, last, true, params.top_k);
        const uint32_t num_shared = params.top_k - place.count_before;
        kept = place.mass_before + num_shared * (place.mass / place.count);
    }
    if (params.top_p < 1.0f) {
        const uint64_t limit = top_p_limit(params.top_p, kept);
        kept = min(kept, find(s, source, by_distance, last, false, limit).mass_at(limit));
    }
    if (params.min_p_distance > -INFINITY) {
        uint64_t mass = 0;
        source.for_each([&](float x, uint32_t) {
            if (x - row.max >= params.min_p_distance) mass += row.units(x);
        });
        __syncthreads();
        kept = min(kept, block_prefix(s, 0, mass).total_mass);
    }
    const uint64_t target = target_of(params.u, kept);
    const Place place = find(s, source, by_distance, last, false, target + 1);
    // Those that share the place follow by id.
    const uint64_t rank = (target - place.mass_before) / (place.mass / place.count);
    const auto by_token = [&](float x, uint32_t token, uint32_t &at, uint64_t &mass) {
        at = token;
        mass = 0;
        return row.distance(x) == place.coordinate;
    };
    if (place.count > 1) return find(s, source, by_token, row.vocab - 1, true, rank + 1).coordinate;
    source.for_each([&](float x, uint32_t token) {
        if (row.distance(x) == place.coordinate) s.token = token;
    });
    __syncthreads();
    return s.token;
}

__device__ uint32_t draw_truncated(Shared &s, Row row, const SamplingRow &params, uint32_t arg_max) {
    const bool by_count = params.top_k != 0;
    // Only min-p: what it drops need not be looked at.
    // The floor is a little lower, so that its rounding drops nothing.
    if (!by_count && params.top_p >= 1.0f) {
        const float slack = 1e-6f * (fabsf(row.max) - params.min_p_distance);
        row.floor = fmaxf(row.floor, row.max + params.min_p_distance - slack);
    }
    const WholeRow source{row};
    const auto by_distance = [&](float x, uint32_t, uint32_t &at, uint64_t &mass) {
        at = row.distance(x);
        mass = row.units(x);
        return mass != 0;
    };
    const uint32_t last = row.distance(row.floor), shift = shift_for(last);
    const Prefix total = fill_bins(s, source, by_distance, 0, last, shift);
    if (total.total_mass == 0) return arg_max;
    // What is kept ends in this bin or before.
    const uint64_t limit = by_count ? min(params.top_k, total.total_count)
                                    : top_p_limit(params.top_p, total.total_mass);
    const Place edge = find_bin(s, total, by_count, limit);
    if (edge.count_before + edge.count > kMaxListed) return choose(s, source, row, params, total, last);
    const uint32_t end = (edge.coordinate + 1) << shift;  // 0: all
    source.for_each([&](float x, uint32_t token) {
        if (row.distance(x) <= end - 1 && row.units(x) != 0) {
            s.listed[atomicAdd(&s.num_listed, 1u)] = {x, token};
        }
    });
    __syncthreads();
    return choose(s, Listed{s.listed, s.num_listed}, row, params, total, last);
}

// In the order of ids. The mass of slices is f64, within a slice it is units.
__device__ uint32_t draw_all(Shared &s, const Row &row, const SamplingRow &params,
                             const SlicePartial *partials, uint32_t num_slices, uint32_t arg_max) {
    const uint32_t lane = lane_index(), num_own = (num_slices + kWarpSize - 1) / kWarpSize;
    const auto mass_of = [&](uint32_t slice) {
        if (slice >= num_slices || partials[slice].arg_max == kNone) return 0.0;
        const double below = static_cast<double>(partials[slice].max - row.max);
        return partials[slice].mass * exp(below * static_cast<double>(row.inv_temperature));
    };
    double own = 0.0;
    for (uint32_t i = 0; i < num_own; ++i) own += mass_of(lane * num_own + i);
    double to = own;
    for (int lanes = 1; lanes < kWarpSize; lanes *= 2) {
        const double more = __shfl_up_sync(kFullWarp, to, lanes);
        if (static_cast<int>(lane) >= lanes) to += more;
    }
    const double target = params.u * __shfl_sync(kFullWarp, to, kWarpSize - 1);
    // Rounding can leave a little: then the last that has mass.
    const unsigned beyond = __ballot_sync(kFullWarp, own > 0.0 && to > target);
    const unsigned with_mass = __ballot_sync(kFullWarp, own > 0.0);
    if (with_mass == 0) return arg_max;
    const int owner = beyond != 0 ? __ffs(static_cast<int>(beyond)) - 1
                                  : 31 - __clz(static_cast<int>(with_mass));
    double left = fmax(target - (to - own), 0.0), mass_here = 0.0;
    uint32_t slice = 0;
    for (uint32_t i = 0; i < num_own; ++i) {
        const double next = mass_of(lane * num_own + i);
        if (next <= 0.0 || left < mass_here) continue;
        left -= mass_here;
        mass_here = next;
        slice = lane * num_own + i;
    }
    slice = __shfl_sync(kFullWarp, slice, owner);
    left = __shfl_sync(kFullWarp, left, owner);

    const uint32_t num_threads_own = kSlice / blockDim.x;
    const uint32_t begin = slice * kSlice + threadIdx.x * num_threads_own;
    uint64_t mass = 0;
    for (uint32_t i = 0; i < num_threads_own; i += 4) {
        const float4 x = load_logits(row.logits, begin + i, row.vocab, row.aligned, -INFINITY);
        mass += row.units(x.x) + row.units(x.y) + row.units(x.z) + row.units(x.w);
    }
    const Prefix prefix = block_prefix(s, 0, mass);
    if (prefix.total_mass == 0) return arg_max;
    const double in_units = fmin(left * static_cast<double>(kUnits),
                                 static_cast<double>(prefix.total_mass - 1));
    const uint64_t at = min(static_cast<uint64_t>(in_units), prefix.total_mass - 1);
    if (prefix.mass <= at && at < prefix.mass + mass) {
        uint64_t to_here = prefix.mass;
        for (uint32_t i = 0; i < num_threads_own && begin + i < row.vocab; ++i) {
            to_here += row.units(row.logits[begin + i]);
            if (at < to_here) {
                s.token = begin + i;
                break;
            }
        }
    }
    __syncthreads();
    return s.token;
}

// ln p of the token and of the most likely ones, from raw logits.
__device__ void write_logprobs(Shared &s, const SamplingParams &p, const SamplingRow &params,
                               const float *logits, const SlicePartial *partials, DrawnRow &drawn) {
    // A listed token's logit is no longer what the model gave.
    if (threadIdx.x == 0) s.raw = logits[drawn.token];
    __syncthreads();
    const uint32_t num_listed = params.num_biases + params.num_penalties;
    for (uint32_t i = threadIdx.x; i < num_listed; i += blockDim.x) {
        const uint32_t at = params.lists_begin + 2 * i;
        if (p.lists[at] == drawn.token) s.raw = p.raw[at];
    }
    __syncthreads();
    if (warp_index() != 0) return;
    const uint32_t lane = lane_index();
    float raw_max = -INFINITY;
    for (uint32_t i = lane; i < p.num_slices; i += kWarpSize) raw_max = fmaxf(raw_max, partials[i].raw_max);
    raw_max = warp_max(raw_max);
    double sum = 0.0;
    for (uint32_t i = lane; i < p.num_slices; i += kWarpSize) {
        sum += partials[i].raw_sum * exp(static_cast<double>(partials[i].raw_max - raw_max));
    }
    const double log_total = static_cast<double>(raw_max) + log(warp_sum_f64(sum));
    drawn.logprob = static_cast<float>(static_cast<double>(s.raw) - log_total);
    // A lane holds the next of its slices; the largest of all leaves, one a round.
    const uint64_t *const slice_tops = p.slice_tops + size_t{blockIdx.x} * p.num_slices * kMaxTop;
    uint64_t next[kOwnSlices];
    uint32_t taken[kOwnSlices] = {};
#pragma unroll
    for (uint32_t i = 0; i < kOwnSlices; ++i) {
        const uint32_t slice = lane + i * kWarpSize;
        next[i] = slice < p.num_slices && params.num_top != 0 ? slice_tops[slice * kMaxTop] : 0;
    }
    for (uint32_t round = 0; round < params.num_top; ++round) {
        uint64_t best = 0;
#pragma unroll
        for (uint32_t i = 0; i < kOwnSlices; ++i) best = max(best, next[i]);
        best = warp_max_u64(best);
        if (best == 0) break;
#pragma unroll
        for (uint32_t i = 0; i < kOwnSlices; ++i) {
            if (next[i] != best) continue;
            const uint32_t at = ++taken[i];
            next[i] = at < params.num_top ? slice_tops[(lane + i * kWarpSize) * kMaxTop + at] : 0;
        }
        ++drawn.num_top;
        const float x = logit_of_key(static_cast<uint32_t>(best >> 32));
        const auto logprob = static_cast<float>(static_cast<double>(x) - log_total);
        if (lane == 0) {
            p.tops[size_t{blockIdx.x} * kMaxTop + round] = {kNone - static_cast<uint32_t>(best), logprob};
        }
    }
}

}  // namespace

WEFT_KERNEL(sample_draw, SamplingParams, kMaxThreads) {
    __shared__ Shared s;
    const SamplingRow &params = p.rows[blockIdx.x];
    if ((params.flags & kActive) == 0) return;
    const SlicePartial *const partials = p.partials + size_t{blockIdx.x} * p.num_slices;
    if (threadIdx.x == 0) s.num_listed = 0;

    // Each warp for itself.
    bool finite = true;
    Best best{-INFINITY, kNone};
    for (uint32_t i = lane_index(); i < p.num_slices; i += kWarpSize) {
        finite = finite && partials[i].finite != 0;
        best = better(best, Best{partials[i].max, partials[i].arg_max});
    }
    finite = __all_sync(kFullWarp, finite);
    best = warp_best(best);

    DrawnRow drawn{0, kDrawn, 0.0f, 0};
    if (!finite || best.token == kNone) {
        drawn.status = finite ? kNothingAllowed : kNotFinite;
        if (threadIdx.x == 0) p.drawn[blockIdx.x] = drawn;
        return;
    }
    const float floor = best.x - kReach / params.inv_temperature;
    const Row row{p.logits + size_t{blockIdx.x} * p.stride, p.vocab, p.stride % 4 == 0, best.x,
                  params.inv_temperature, floor};
    if ((params.flags & kGreedy) != 0) {
        drawn.token = best.token;
    } else if ((params.flags & kTruncated) != 0) {
        drawn.token = draw_truncated(s, row, params, best.token);
    } else {
        drawn.token = draw_all(s, row, params, partials, p.num_slices, best.token);
    }
    if ((params.flags & kWantsLogprobs) != 0) {
        write_logprobs(s, p, params, row.logits, partials, drawn);
    }
    if (threadIdx.x == 0) p.drawn[blockIdx.x] = drawn;
}
