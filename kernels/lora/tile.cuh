// A tile of weights or activations on its way from global to shared memory, for tensor cores. In: rows
// of W, of any type and place. Out: rows of kColumns numbers of T, zeros where there is nothing.
#pragma once

#include "../common/ptx.cuh"
#include "lora.cuh"

constexpr uint32_t kTileThreads = 128;
constexpr uint32_t kTileWarps = kTileThreads / kWarpSize;

template <typename A, typename B> struct IsSame {
    static constexpr bool value = false;
};
template <typename A> struct IsSame<A, A> {
    static constexpr bool value = true;
};

// Eight numbers of a row of a tile. Chunks are swapped within rows, so that the eight rows of an
// ldmatrix lie in different banks.
template <uint32_t kColumns, typename T>
__device__ __forceinline__ T *tile_chunk(T *tile, uint32_t row, uint32_t chunk) {
    return tile + row * kColumns + (chunk ^ (row % 8)) * 8;
}

// A thread copies one chunk in each of four groups of rows. What needs no conversion is copied past
// the registers; else `begin` reads into registers and `end`, after other work, writes. Widths that
// are no multiples of eight are right, not fast: one chunk after the other, all in `begin`.
template <typename W, typename T, uint32_t kColumns, bool kAligned> struct TileLoader {
    static constexpr bool kDirect = IsSame<W, T>::value && kAligned;
    static constexpr uint32_t kChunks = kColumns / 8;
    static constexpr uint32_t kGroupRows = kTileThreads / kChunks;
    static constexpr uint32_t kGroups = 4;

    const W *rows[kGroups];
    uint32_t is_there;    // a bit for each group: its row exists
    uint32_t num_groups;  // the others are not even written
    Raw8<W> raw[kDirect || !kAligned ? 1 : kGroups];

    static __device__ __forceinline__ uint32_t row(uint32_t group) {
        return group * kGroupRows + threadIdx.x / kChunks;
    }
    static __device__ __forceinline__ uint32_t chunk() { return threadIdx.x % kChunks; }

    // Columns first .. first + kColumns of rows of `width`.
    __device__ __forceinline__ void begin(T *tile, uint32_t first, uint32_t width) {
        const uint32_t column = first + chunk() * 8;
#pragma unroll
        for (uint32_t group = 0; group < kGroups; ++group) {
            if (group >= num_groups) break;
            const bool valid = (is_there >> group & 1) != 0 && column < width;
            if constexpr (kDirect) {
                const W *from = rows[group] + (valid ? column : 0);
                cp_async_16(tile_chunk<kColumns>(tile, row(group), chunk()), from, valid);
            } else {
                Raw8<W> &own = raw[kAligned ? group : 0];
                if (valid) {
                    own = load_raw8<kAligned>(rows[group], column, width);
                } else {
#pragma unroll
                    for (int i = 0; i < 8; ++i) own.x[i] = from_f32<W>(0.0f);
                }
                if constexpr (!kAligned) write(tile, group, own);
            }
        }
    }

    __device__ __forceinline__ void end(T *tile) {
        if constexpr (!kDirect && kAligned) {
#pragma unroll
            for (uint32_t group = 0; group < kGroups; ++group) {
                if (group >= num_groups) break;
                write(tile, group, raw[group]);
            }
        }
    }

  private:
    static __device__ __forceinline__ void write(T *tile, uint32_t group, const Raw8<W> &own) {
        float v[8];
        unpack8(own, v);
        *reinterpret_cast<uint4 *>(tile_chunk<kColumns>(tile, row(group), chunk())) =
            make_uint4(pack2<T>(v[0], v[1]), pack2<T>(v[2], v[3]), pack2<T>(v[4], v[5]), pack2<T>(v[6], v[7]));
    }
};
