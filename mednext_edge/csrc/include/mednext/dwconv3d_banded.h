// Depthwise convolution of stride 1 on tensor cores, in half precision and in int8.
//
// For one channel and one plane of inputs the convolution is a matrix product. Cut the outputs into rectangles of NY x
// NX = 8. All outputs of a rectangle need the same (NY + K - 1) x (NX + K - 1) inputs, so with
//   A   [16 rectangles][16 inputs of each], a slice of two rows of 8
//   B   [16 inputs][8 outputs], the weight by which an input enters an output, zero where it does not
// the sum of Q = (NY + K - 1) / 2 products gives 128 outputs what this plane adds to them. B is a band that depends on
// the weights alone; it stays in registers, 2 K Q of them. A warp has one channel. It keeps the sums of the K - 1
// planes of outputs that are not complete, and every plane of inputs adds to K of them with the same A.
//
// A wants neighbours along x in one word, channel_planes.h makes them; outputs go back the same way.
//
// Counts for 128 outputs, in cycles of a multiprocessor of an H200 (1.76 GHz: 20.7 bytes of device memory, 128 of
// shared memory, 128 FMA, 4 instructions a cycle; a product takes 1 at best, 1.6 if mma.sync reaches, as is said, 62 %
// of that). They are made from data sheets and machine code, not measured.
//                                                                k3         k5         k7
//   NY x NX                                                     2 x 4      2 x 4      4 x 2
//   products            K Q                                       6         15         35
//   of the band, not zero   K^2 / (16 Q)                         28 %       52 %       61 %
//   tensor cores                                                6-10      15-24      35-56
//   device memory       512 bytes                                25         25         25
//   instructions        all, compiled for 9.0; statistics        25         27         55
//                       take 4 to 7 more
//   shared memory       inputs with halo copied, read, written   8         10         14
//                       A (107, 51, 73 bytes a product)           5          6         20
//                       outputs and plans                         7          7         11
//   FMA                 K^3, nothing else (dwconv3d_direct.h)     27        125        343
// So k3 and k5 should come near the bound of memory and k7 near that of tensor cores, at 4.6 and 6 times what FMA alone
// allows at k5 and k7. With tensor cores of 256 FMA a cycle with float sums (GeForce of 8.6, 8.9, 12.0) a product takes
// 8 cycles, and the three 48, 120 and 280: near the FMA at k5 and little below at k7, but FMA come with reads and
// conversions, which products leave room for. MEDNEXT_PATH_AUTO therefore asks for no more than tiles half full, on every
// GPU.
//
// In int8 a slice has 32 inputs, a product twice the multiplications in the same time, and memory half the bytes;
// outputs are scaled by channel. K Q products are 3, 10 and 21, of which 28, 39 and 51 % are not zero: 3-5, 10-16 and
// 21-34 cycles beside 12 of memory. Four multiplications in one instruction (dp4a), of which 64 start in a cycle and
// K^2 ceil(K / 4) make an output, would take 18, 100 and 196.
//
// In 2-D (KZ = 1) a plane of inputs makes one of outputs, with Q products: 5 at k7, 3 at k5. What takes longest is
// shared memory, 45 cycles at k7 and 23 at k5, and device memory, 25; FMA alone issue 70 and 38. At k3 they issue 15,
// so it has no tensor cores in half precision; nor has k9, whose rectangles would have to read more than 8 columns.
//
// In half precision the weights are rounded to the storage type, and an input that is not finite makes the other
// outputs of its rectangle not a number too: zeros of the band multiply it.
#pragma once

#include <type_traits>

#include "mednext/channel_planes.h"
#include "mednext/dwconv3d_args.h"
#include "mednext/moments.h"

namespace mednext {

// Which input each element of a product's first factor is. A lane holds of every rectangle two words (`half` 0 and 1)
// of slice q, at row `row(q, half)` and column `column(q)` from where it stands itself: `lane_row`, `lane_column`.
template <class T, int K>
struct BandShape {
  static constexpr int NX = K == 7 ? 2 : 4, NY = 8 / NX, Q = (NY + K - 1) / 2, TILES = K == 7 ? 1 : 2;
  static constexpr int ROWS = 2 * Q, COLUMNS = 8;  // of inputs that a rectangle reads

  MEDNEXT_DEVICE static int lane_row(int) { return 0; }
  MEDNEXT_DEVICE static int lane_column(int t) { return 2 * t; }
  MEDNEXT_DEVICE static constexpr int row(int q, int half) { return 2 * q + half; }
  MEDNEXT_DEVICE static constexpr int column(int) { return 0; }
};

// 32 inputs in a slice: four rows of 8 at k3 and k5, 8 rows of 4 at k7.
template <int K>
struct BandShape<I8, K> {
  static constexpr int NX = 4, NY = 2, Q = K / 2, TILES = 2;
  static constexpr int ROWS = K == 7 ? 8 : 4 * Q, COLUMNS = K == 7 ? 12 : 8;

  MEDNEXT_DEVICE static int lane_row(int t) { return K == 7 ? t : t / 2; }
  MEDNEXT_DEVICE static int lane_column(int t) { return K == 7 ? 0 : t % 2 * 4; }
  MEDNEXT_DEVICE static constexpr int row(int q, int half) { return K == 7 ? 4 * half : 4 * q + 2 * half; }
  MEDNEXT_DEVICE static constexpr int column(int q) { return K == 7 ? 4 * q : 0; }
};

template <class T, int K_, int KZ>
struct Banded {
  static constexpr bool INTEGER = std::is_same_v<T, I8>;
  using Args = std::conditional_t<INTEGER, Int8Args, ConvArgs>;
  using Sum = std::conditional_t<INTEGER, int32_t, float>;
  using Shape = BandShape<T, K_>;
  using Element = typename T::Element;
  static constexpr int K = K_, P = K / 2, PZ = KZ / 2, CHANNELS = BAND_CHANNELS, WARPS = CHANNELS, THREADS = 32 * WARPS;
  static constexpr int MIN_BLOCKS = KZ == 1 ? 2 : 1;
  static constexpr int NX = Shape::NX, NY = Shape::NY, Q = Shape::Q, ELEMENT = static_cast<int>(sizeof(Element));
  // A product has 8 rectangles side by side and 2 one below the other; a warp has TILES products below each other.
  static constexpr int TILES = Shape::TILES, X = 8 * NX, ROWS = 2 * NY * TILES;
  static constexpr int OVERHEAD = KZ - 1 + 2;  // planes beside its output planes; reading the weights takes two more
  using Raw = RawWindow<T, (2 * TILES - 1) * NY + Shape::ROWS, 7 * NX + Shape::COLUMNS>;
  using Window = ChannelWindow<T, Raw>;
  using Turn = typename Window::template Turn<WARPS>;
  static constexpr int SLOTS = 3;  // of raw planes: one is turned over, the others are on their way
  // Planes of outputs [channel][y][x]; what eight lanes read at once lies in different banks.
  static constexpr int OUT_PITCH = ROWS * X * ELEMENT + 16, OUT_BYTES = CHANNELS * OUT_PITCH;
  static constexpr int WINDOWS = SLOTS * Raw::BYTES, OUTS = WINDOWS + 2 * Window::BYTES;
  // What a thread does in every plane lies in shared memory, as there are few registers to keep it in: its plan, in
  // words.
  enum { COPY_TO, TURN, WORDS, STORE_FROM, STORE_TO, COPY_FROM, FIELDS = K == 7 ? COPY_FROM + 2 : COPY_FROM };
  static constexpr int PLAN = OUTS + 2 * OUT_BYTES, MOMENTS = PLAN + FIELDS * THREADS * 4;
  static constexpr int PLACE = MOMENTS + (K == 7 ? THREADS * static_cast<int>(sizeof(PivotSums)) : 0);
  static constexpr int SHARED = PLACE + 32;
  static constexpr int TAPS = KZ * K * K, WEIGHT_PITCH = (TAPS * ELEMENT / 8 * 8 + 12) / ELEMENT;  // odd, in words
  static_assert(SHARED <= 99 * 1024, "the smallest limit of a block among the architectures (8.6, 8.9, 12.0)");
  static_assert(sizeof(Place) <= 32, "it has room");
  static_assert(THREADS * static_cast<int>(sizeof(Moments)) <= OUTS, "moments reuse raw planes and windows");
  static_assert(CHANNELS * WEIGHT_PITCH * ELEMENT <= 2 * Window::BYTES, "weights pass through the windows");

  using Band = uint32_t[KZ][Q][2];
  using Sums = Sum[TILES][KZ > 1 ? KZ - 1 : 1][4];
  using Done = Sum[4];

  // Weights of the block's channels, rounded, [channel][tap].
  MEDNEXT_DEVICE static void read_weights(const Args& a, int c0, Element* weights) {
#pragma unroll 1
    for (int i = thread_index(); i < TAPS * CHANNELS; i += THREADS) {
      const int channel = i % CHANNELS, tap = i / CHANNELS, from = a.flip ? TAPS - 1 - tap : tap;
      const bool inside = c0 + channel < a.c;
      const int64_t at = static_cast<int64_t>(from) * a.c + c0 + channel;
      Element& weight = weights[channel * WEIGHT_PITCH + tap];
      if constexpr (INTEGER) {
        weight = inside ? a.taps[at] : Element(0);
      } else {
        weight = T::narrow(inside ? a.weight[at] : 0.0f);
      }
    }
  }

  // The second factors: an input at (y, x) of a rectangle meets output (dy, dx) by tap (y - dy, x - dx).
  MEDNEXT_DEVICE static void make_band(const Element* weights, int lane, Band& band) {
    using Bits = std::make_unsigned_t<Element>;
    const int g = lane / 4, t = lane % 4, y = Shape::lane_row(t) - g / NX, x = Shape::lane_column(t) - g % NX;
#pragma unroll
    for (int kz = 0; kz < KZ; ++kz) {
#pragma unroll
      for (int q = 0; q < Q; ++q) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int ky = y + Shape::row(q, half);
          uint32_t word = 0;
#pragma unroll
          for (int i = 0; i < T::WIDTH; ++i) {
            const int kx = x + Shape::column(q) + i;
            if (ky < 0 || ky >= K || kx < 0 || kx >= K) continue;
            word |= static_cast<uint32_t>(static_cast<Bits>(weights[(kz * K + ky) * K + kx])) << 8 * ELEMENT * i;
          }
          band[kz][q][half] = word;
        }
      }
    }
  }

  // Of tile `m`. sums[m][j] belongs to the output plane that misses KZ - 1 - j planes of inputs; the one that misses
  // none is `done`.
  MEDNEXT_DEVICE static void add_plane(const char* rows, const Band& band, int m, Sums& sums, Done& done) {
    Sum zeros[4] = {};
#pragma unroll
    for (int q = 0; q < Q; ++q) {
      // At k7 the band takes 70 registers; words read ahead of their turn would push some of it out.
      if (K == 7 && KZ > 1) warp_order();
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {  // of the upper and the lower rectangle, then their other halves
        const int row = Shape::row(q, i / 2) + (2 * m + i % 2) * NY;
        a[i] = read_word(rows + row * Window::ROW_BYTES + Shape::column(q) * ELEMENT);
      }
#pragma unroll
      for (int j = 0; j < KZ; ++j) {
        const uint32_t(&b)[2] = band[KZ - 1 - j][q];
        Sum(&to)[4] = j == 0 ? done : sums[m][j == 0 ? 0 : j - 1];
        mma<T>(to, a, b[0], b[1], q > 0 ? to : j + 1 < KZ ? sums[m][j + 1 < KZ ? j : 0] : zeros);
      }
    }
  }

  // Adds the bias, and rounds to the plane of outputs; `out` is where this lane's first pair goes.
  MEDNEXT_DEVICE static void write_done(const Args& a, int channel, Done& done, char* out) {
    const float bias = a.bias ? a.bias[channel] : 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      char* to = out + i / 2 * NY * X * ELEMENT;
      if constexpr (INTEGER) {
        const int low = I8::requantise(done[i], a.scale[channel], bias);
        const int high = I8::requantise(done[i + 1], a.scale[channel], bias);
        *reinterpret_cast<uint16_t*>(to) = static_cast<uint16_t>((low & 0xff) | high << 8);
      } else {
        done[i] += bias, done[i + 1] += bias;
        write_word(to, T::pack({done[i], done[i + 1]}));
      }
    }
  }

  // Bytes from a tensor's first to plane z of image n: one instruction, since both factors have 32 bits.
  MEDNEXT_DEVICE static uint64_t plane(const Extent& size, int c, int n, int z) {
    return static_cast<uint64_t>(static_cast<uint32_t>(n * size.d + z)) *
           static_cast<uint32_t>(size.h * size.w * c * ELEMENT);
  }

  // Copies planes of inputs: a thread up to two pieces, the same ones of every plane.
  struct Loader {
    static constexpr int COPIES = Raw::HEIGHT * Raw::WIDTH * Raw::PIECES, TURNS = (COPIES + THREADS - 1) / THREADS;
    static_assert(TURNS <= 2 && Raw::BYTES <= 1 << 16, "the places of two copies lie in one word");

    static constexpr uint32_t OUTSIDE = 0xffffffffu;

    // Elements from the plane's first to the piece, or OUTSIDE.
    MEDNEXT_DEVICE static uint32_t from(const Args& a, const Place& at, int turn) {
      const int copy = turn * THREADS + thread_index(), voxel = copy / Raw::PIECES;
      const int y = at.y0 - P + voxel / Raw::WIDTH, x = at.x0 - P + voxel % Raw::WIDTH;
      const int channel = at.c0 + 16 / ELEMENT * (copy % Raw::PIECES);
      const bool inside = y >= 0 && y < a.in.h && x >= 0 && x < a.in.w && channel < a.c;
      return inside ? static_cast<uint32_t>((y * a.in.w + x) * a.c + channel) : OUTSIDE;
    }

    // Where both pieces go.
    MEDNEXT_DEVICE static uint32_t to() {
      uint32_t places = 0;
#pragma unroll
      for (int turn = 0; turn < TURNS; ++turn) {
        const int copy = turn * THREADS + thread_index();
        places |= static_cast<uint32_t>(Raw::place(copy / Raw::PIECES, copy % Raw::PIECES)) << 16 * turn;
      }
      return places;
    }

    // `kept`: what the plan has no room for at k3 and k5.
    MEDNEXT_DEVICE static void start(const uint32_t* plan, const uint32_t (&kept)[2], const Args& a, const Place& at,
                                     char* raw, int z) {
      if (!a.wide) {
        int thread = thread_index();
        forget(thread);
        PlaneLoader<T, Raw, THREADS>(a.x, a.in, a.c, at.n, at.y0 - P, at.x0 - P, at.c0, false, thread).start(raw, z);
        return;
      }
      const bool has = z >= 0 && z < a.in.d;
      const char* base = static_cast<const char*>(a.x) + plane(a.in, a.c, at.n, has ? z : 0);
      const uint32_t to = plan[COPY_TO * THREADS];
#pragma unroll
      for (int turn = 0; turn < TURNS; ++turn) {
        if (turn * THREADS + thread_index() >= COPIES) break;
        const uint32_t from = K == 7 ? plan[(COPY_FROM + turn) * THREADS] : kept[turn];
        const bool inside = has && from != OUTSIDE;
        copy_async(raw + (to >> 16 * turn & 0xffff), base + static_cast<uint64_t>(inside ? from : 0u) * ELEMENT,
                   inside);
      }
    }
  };

  // Writes the part of a plane of outputs that lies within the tensor, channels last again: a lane four channels of
  // voxels of one row, which in half precision are 8 voxels apart, and in int8 two and two neighbours 16 voxels apart.
  struct Store {
    static constexpr int SPAN = 32 / ELEMENT, VOXELS = 4 / ELEMENT;  // of a warp, of a lane
    static_assert(ROWS * X <= SPAN * WARPS && X % SPAN == 0 && OUT_BYTES <= 1 << 16, "each warp has a piece of a row");

    MEDNEXT_DEVICE static constexpr int voxel(int i) { return INTEGER ? i / 2 * 16 + i % 2 : i * 8; }

    struct Corner {
      int y, x, c;
      MEDNEXT_DEVICE explicit Corner(const Place& at) {
        const int first = thread_index() / 32 * SPAN, lane = thread_index() % 32;
        y = at.y0 + first / X, x = at.x0 + first % X + lane / 4 * (INTEGER ? 2 : 1), c = at.c0 + 4 * (lane % 4);
      }
    };

    // Where it reads; from bit 16 on, which of its voxels lie within.
    MEDNEXT_DEVICE static uint32_t from(const Args& a, const Place& at) {
      const int unit = thread_index() / 32, lane = thread_index() % 32;
      const int channel = lane % 8 / 2 * 4 + lane / 8 % 2 * 2 + lane % 2;  // so that a lane gets four neighbours
      const Corner corner(at);
      uint32_t word = static_cast<uint32_t>(channel * OUT_PITCH + (2 * unit + lane / 16) * 16);
      for (int i = 0; i < VOXELS; ++i) {
        const bool inside = unit * SPAN < ROWS * X && corner.y < a.out.h && corner.c < a.c;
        word |= static_cast<uint32_t>(inside && corner.x + voxel(i) < a.out.w) << (16 + i);
      }
      return word;
    }

    // Elements from the plane's first to where it writes.
    MEDNEXT_DEVICE static uint32_t to(const Args& a, const Place& at) {
      const Corner corner(at);
      return static_cast<uint32_t>((corner.y * a.out.w + corner.x) * a.c + corner.c);
    }

    MEDNEXT_DEVICE static void run(uint32_t from, uint32_t to, const Args& a, const Place& at, const char* out, int z) {
      if (thread_index() / 32 * SPAN >= ROWS * X) return;  // whole warps
      uint32_t words[4];
      read_transposed(out + (from & 0xffff), words);
      if constexpr (INTEGER) {  // pairs of voxels of one channel to four channels of one voxel
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          const uint32_t even = even_bytes(words[i], words[i + 1]), odd = odd_bytes(words[i], words[i + 1]);
          words[i] = even, words[i + 1] = odd;
        }
      }
      char* first = static_cast<char*>(a.y) + plane(a.out, a.c, at.n, z) + static_cast<uint64_t>(to) * ELEMENT;
#pragma unroll
      for (int i = 0; i < VOXELS; ++i) {
        if (!(from >> (16 + i) & 1)) continue;
        Element* y = reinterpret_cast<Element*>(first) + voxel(i) * a.c;
        if (a.packed) {
          if constexpr (INTEGER) {
            write_word(y, words[i]);
          } else {
            write_pair(y, words[2 * i], words[2 * i + 1]);
          }
          continue;
        }
        const int channels = a.c - at.c0 - 4 * (thread_index() % 4);
#pragma unroll
        for (int v = 0; v < 4; ++v) {
          const uint32_t word = INTEGER ? words[i] : words[(2 * i + v / 2) % 4];
          if (v < channels) y[v] = static_cast<Element>(word >> v % T::WIDTH * 8 * ELEMENT);
        }
      }
    }
  };

  // Bit by bit, which of a lane's sums in a plane belong to the tensor; dy and dx are the first one's in the tile.
  MEDNEXT_DEVICE static unsigned within(const Args& a, const Place& at, int dy, int dx) {
    unsigned mask = 0;
    for (int i = 0; i < 4 * TILES; ++i) {
      const bool inside = at.y0 + dy + i / 2 * NY < a.out.h && at.x0 + dx + i % 2 < a.out.w;
      mask |= static_cast<unsigned>(inside) << i;
    }
    return mask;
  }

  // Grid: (tiles_x * tiles_y * chunks * channel tiles, 1, n), channel tiles fastest: they share what memory hands out.
  MEDNEXT_DEVICE static void run(const Args& a, char* shared) {
    const int tiles_c = (a.c + CHANNELS - 1) / CHANNELS;
    Place* const place = reinterpret_cast<Place*>(shared + PLACE);
    if (thread_index() == 0) *place = Place(a, X, ROWS, block_x() / tiles_c, block_x() % tiles_c * CHANNELS);
    barrier();
    const Place& at = *place;  // there are few registers for it too
    char* const windows = shared + WINDOWS;
    char* const outs = shared + OUTS;
    uint32_t* const plan = reinterpret_cast<uint32_t*>(shared + PLAN) + thread_index();
    const int steps = at.z1 - at.z0 + KZ - 1;

    const uint32_t kept[2] = {Loader::from(a, at, 0), Loader::from(a, at, 1)};
    {
      const int warp = thread_index() / 32, lane = thread_index() % 32;
      // Of its channel: its inputs of rectangle g, and outputs 2 t and 2 t + 1 of it.
      const int g = lane / 4, t = lane % 4, dy = 2 * t / NX, dx = g * NX + 2 * t % NX;
      const int in =
          warp * Window::PITCH + Shape::lane_row(t) * Window::ROW_BYTES + (g * NX + Shape::lane_column(t)) * ELEMENT;
      const int out = warp * OUT_PITCH + (dy * X + dx) * ELEMENT;
      if (K == 7) {
        for (int turn = 0; turn < 2; ++turn) plan[(COPY_FROM + turn) * THREADS] = kept[turn];
      }
      plan[COPY_TO * THREADS] = Loader::to();
      plan[TURN * THREADS] = Turn::places();
      plan[WORDS * THREADS] = static_cast<uint32_t>(in) | static_cast<uint32_t>(out) << 16;
      plan[STORE_FROM * THREADS] = Store::from(a, at) | within(a, at, dy, dx) << 24;
      plan[STORE_TO * THREADS] = Store::to(a, at);
    }
    const auto start = [&](int i, int slot) {
      if (i < steps) Loader::start(plan, kept, a, at, shared + slot * Raw::BYTES, at.z0 - PZ + i);
      copies_commit();
    };
#pragma unroll 1
    for (int i = 0; i < SLOTS; ++i) start(i, i);

    Band band;
    Element* weights = reinterpret_cast<Element*>(windows);
    read_weights(a, at.c0, weights);
    barrier();
    make_band(weights + thread_index() / 32 * WEIGHT_PITCH, thread_index() % 32, band);

    copies_wait<SLOTS - 1>();
    barrier();  // the first plane has landed; nobody reads weights any more
    Turn::run(plan[TURN * THREADS], shared, windows);

    Sums sums = {};
    PivotSums own;
    PivotSums& moments = K == 7 ? reinterpret_cast<PivotSums*>(shared + MOMENTS)[thread_index()] : own;
    moments = PivotSums();
    int slot = 0;  // of raw plane i, which has been turned over
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
      copies_wait<SLOTS - 2>();
      barrier();  // plane i is turned over, plane i + 1 has landed, the outputs before are complete
      start(i + SLOTS, slot);
      slot = slot + 1 == SLOTS ? 0 : slot + 1;
      if (i + 1 < steps) {
        Turn::run(plan[TURN * THREADS], shared + slot * Raw::BYTES, windows + (~i & 1) * Window::BYTES);
      }
      const int z = at.z0 + i - (KZ - 1);
      if (z > at.z0) {
        char* out = outs + (~i & 1) * OUT_BYTES;
        Store::run(plan[STORE_FROM * THREADS], plan[STORE_TO * THREADS], a, at, out, z - 1);
      }
      if (at.c0 + thread_index() / 32 >= a.c) continue;
      const char* in = windows + (i & 1) * Window::BYTES + (plan[WORDS * THREADS] & 0xffff);
#pragma unroll
      for (int m = 0; m < TILES; ++m) {
        Done done;
        add_plane(in, band, m, sums, done);
        if (z < at.z0) continue;
        int thread = thread_index();
        forget(thread);
        const int channel = at.c0 + thread / 32;
        char* out = outs + (i & 1) * OUT_BYTES + (plan[WORDS * THREADS] >> 16);
        write_done(a, channel, done, out + 2 * m * NY * X * ELEMENT);
        if constexpr (!INTEGER) {
          if (a.partials) moments.add(done, plan[STORE_FROM * THREADS] >> (24 + 4 * m), z == at.z0 && m == 0);
        }
      }
    }
    barrier();
    const uint32_t from = plan[STORE_FROM * THREADS];
    Store::run(from, plan[STORE_TO * THREADS], a, at, outs + (~steps & 1) * OUT_BYTES, at.z1 - 1);

    if (INTEGER || !a.partials) return;
    int values = 0;  // of this lane in a plane
#pragma unroll
    for (int i = 0; i < 4 * TILES; ++i) values += from >> (24 + i) & 1;
    Moments* table = reinterpret_cast<Moments*>(shared);
    int thread = thread_index();
    forget(thread);
    table[thread % 32 * CHANNELS + thread / 32] =
        moments.moments(static_cast<float>(values) * static_cast<float>(at.z1 - at.z0));
    barrier();
    int c = a.c;
    forget(c);
    const int tiles = (c + CHANNELS - 1) / CHANNELS;
    const int64_t block = static_cast<int64_t>(at.n) * (blocks_x() / tiles) + block_x() / tiles;
    write_partial<32, CHANNELS, THREADS>(table, a.partials + block * 3 * a.c, at.c0, a.c);
  }
};

}  // namespace mednext
