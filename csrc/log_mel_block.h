// Log-mel energies of LANES frames, for one set of vector registers (each_simd.h). The frames stand side by side in the
// lanes, so that a number of the window, the DFT or the bank meets all of them, and nothing moves between lanes but
// where samples come in and energies go out.

// A block's samples, points and powers, in memory that the core's caches hold.
struct Room {
  std::vector<float> memory;
  float* samples;        // emphasised unless each frame is by itself, of all of the block's frames
  Lanes* points;         // of each frame; then its transform
  Lanes* power;          // of each frequency
  int64_t count, width;  // of the samples, and of a frame's, in whole registers

  explicit Room(const Spectra& s) : width((s.taps + LANES - 1) / LANES * LANES) {
    count = (LANES - 1) * s.hop + width;
    const int64_t most = std::max(width, s.points());
    memory.resize((most + s.points() / 2 + 2) * LANES + count);
    const auto address = reinterpret_cast<uintptr_t>(memory.data());
    points = reinterpret_cast<Lanes*>((address + sizeof(Lanes) - 1) / sizeof(Lanes) * sizeof(Lanes));
    power = points + most;
    samples = reinterpret_cast<float*>(power + s.points() / 2 + 1);
  }
};

// The samples from `start` on, which may lie before the row's first, and zeros where there are none.
TARGET void take(const Spectra& s, int64_t row, int64_t start, const Room& room) {
  const int64_t begin = std::clamp<int64_t>(-start, 0, room.count);
  const int64_t end = std::clamp<int64_t>(s.end(row) - start, begin, room.count);
  const float* from = s.waveform + row * s.samples + start;
  std::fill(room.samples, room.samples + begin, 0.0f);
  int64_t at = begin;
  if (s.per_frame || (start + begin == 0 && begin < end)) {
    const int64_t plain = s.per_frame ? end - begin : 1;
    std::copy_n(from + begin, plain, room.samples + begin);
    at += plain;
  }
  for (; at < end; ++at) room.samples[at] = from[at] - s.preemphasis * from[at - 1];
  std::fill(room.samples + end, room.samples + room.count, 0.0f);
}

// Each frame's windowed samples into its lane of the points, and zeros behind them.
TARGET void lay_out(const Spectra& s, const Room& room) {
  Lanes* points = room.points;
  Lanes sum{};
  for (int64_t first = 0; first < room.width; first += LANES) {
    Lanes rows[LANES];
    for (int lane = 0; lane < LANES; ++lane) rows[lane] = load(room.samples + lane * s.hop + first);
    transpose(rows);
    Lanes some{};
    for (int64_t t = 0; t < std::min<int64_t>(LANES, s.taps - first); ++t) {
      some += rows[t];
      points[first + t] = s.per_frame ? rows[t] : rows[t] * s.window[first + t];
    }
    sum += some;
  }
  if (s.per_frame) {
    const Lanes mean = sum / static_cast<float>(s.taps);
    Lanes last = points[0] - mean;
    points[0] = last * ((1.0f - s.preemphasis) * s.window[0]);
    for (int64_t t = 1; t < s.taps; ++t) {
      const Lanes level = points[t] - mean;
      points[t] = (level - s.preemphasis * last) * s.window[t];
      last = level;
    }
  }
  std::fill(points + s.taps, points + s.points(), Lanes{});
}

// The registers of a complex point are its real and its imaginary parts.
using Point = Lanes[2];

template <bool TURNED>
TARGET inline void put(Point& at, const Lanes& re, const Lanes& im, const float* turn) {
  at[0] = TURNED ? re * turn[0] - im * turn[1] : re;
  at[1] = TURNED ? re * turn[1] + im * turn[0] : im;
}

// Four points `quarter` apart become parts of a sum over each fourth.
template <bool TURNED>
TARGET inline void cross(Point* a, int64_t quarter, const float* turns, int64_t step) {
  Point *b = a + quarter, *c = b + quarter, *d = c + quarter;
  const Lanes even_re = (*a)[0] + (*c)[0], even_im = (*a)[1] + (*c)[1];
  const Lanes odd_re = (*b)[0] + (*d)[0], odd_im = (*b)[1] + (*d)[1];
  const Lanes less_re = (*a)[0] - (*c)[0], less_im = (*a)[1] - (*c)[1];
  const Lanes turned_re = (*b)[1] - (*d)[1], turned_im = (*d)[0] - (*b)[0];
  (*a)[0] = even_re + odd_re;
  (*a)[1] = even_im + odd_im;
  put<TURNED>(*b, less_re + turned_re, less_im + turned_im, turns + step);
  put<TURNED>(*c, even_re - odd_re, even_im - odd_im, turns + 2 * step);
  put<TURNED>(*d, less_re - turned_re, less_im - turned_im, turns + 3 * step);
}

TARGET void transform(const Transform& of, Point* points) {
  const float* turns = of.turns.data();
  int64_t group = of.half;
  for (; group >= 4; group /= 4) {
    const int64_t quarter = group / 4, step = 2 * (2 * of.half / group);
    for (int64_t first = 0; first < of.half; first += group) {
      cross<false>(points + first, quarter, turns, 0);
      for (int64_t j = 1; j < quarter; ++j) cross<true>(points + first + j, quarter, turns, step * j);
    }
  }
  if (group == 2)
    for (int64_t first = 0; first < of.half; first += 2)
      for (int part = 0; part < 2; ++part) {
        const Lanes a = points[first][part], b = points[first + 1][part];
        points[first][part] = a + b;
        points[first + 1][part] = a - b;
      }
}

// |DFT|^2 of the real points, even ones in the real parts and odd ones in the imaginary ones, from what these gave.
TARGET void add_up(const Transform& of, const Point* points, Lanes* power) {
  const int64_t half = of.half;
  const Lanes sum = 2.0f * (points[0][0] + points[0][1]), difference = 2.0f * (points[0][0] - points[0][1]);
  power[0] = sum * sum;
  power[half] = difference * difference;
  for (int64_t k = 1; k <= half / 2; ++k) {
    const Point &low = points[of.places[k]], &high = points[of.places[half - k]];
    const float cosine = of.turns[2 * k], sine = of.turns[2 * k + 1];
    const Lanes even_re = low[0] + high[0], even_im = low[1] - high[1];
    const Lanes re = low[0] - high[0], im = low[1] + high[1];
    const Lanes odd_re = cosine * im + sine * re, odd_im = sine * im - cosine * re;
    const Lanes a = even_re + odd_re, b = even_im + odd_im, c = even_re - odd_re, d = even_im - odd_im;
    power[k] = a * a + b * b;
    power[half - k] = c * c + d * d;
  }
}

TARGET inline Lanes log_energy(const Spectra& s, const Lanes& energy) {
  const Lanes guarded = energy + s.offset;
  // Of NaN, NaN.
  return log_of(guarded < s.floor ? Lanes{} + s.floor : guarded);
}

// The energies of `count` frames, whose bins lie side by side in `out`.
TARGET void weigh(const Spectra& s, const Lanes* power, int64_t count, float* out) {
  const int64_t frequencies = s.transform.half + 1;
  for (int64_t first = 0; first < s.bins; first += LANES) {
    const int64_t some = std::min<int64_t>(LANES, s.bins - first);
    // Filters as wide as the widest of them: beyond its own ends one is 0. Of those that are not there, the last again.
    int64_t width = 0;
    for (int64_t bin = first; bin < first + some; ++bin) width = std::max(width, s.bands[bin].end - s.bands[bin].begin);
    const Lanes* powers[LANES];
    const float* weights[LANES];
    for (int64_t lane = 0; lane < LANES; ++lane) {
      const int64_t bin = first + std::min(lane, some - 1);
      const int64_t begin = std::min(s.bands[bin].begin, frequencies - width);
      powers[lane] = power + begin;
      weights[lane] = s.mel + bin * frequencies + begin;
    }
    Lanes energies[LANES] = {};
    for (int64_t k = 0; k < width; ++k)
      for (int lane = 0; lane < LANES; ++lane) energies[lane] += powers[lane][k] * weights[lane][k];
    for (int lane = 0; lane < LANES; ++lane) energies[lane] = log_energy(s, energies[lane]);
    transpose(energies);
    for (int64_t frame = 0; frame < count; ++frame) store(out + frame * s.bins + first, energies[frame], some);
  }
}

// Blocks `begin` up to `end` of all rows'.
TARGET void measure(const Spectra& s, int64_t blocks, int64_t begin, int64_t end) {
  const Room room(s);
  for (int64_t block = begin; block < end; ++block) {
    const int64_t row = block / blocks, first = block % blocks * LANES, start = first * s.hop - s.before;
    const int64_t count = std::min<int64_t>(LANES, s.frames - first);
    float* out = s.out + (row * s.frames + first) * s.bins;
    if (start >= s.end(row)) {
      std::fill_n(out, count * s.bins, log_energy(s, Lanes{})[0]);
      continue;
    }
    take(s, row, start, room);
    lay_out(s, room);
    auto* points = reinterpret_cast<Point*>(room.points);
    transform(s.transform, points);
    add_up(s.transform, points, room.power);
    weigh(s, room.power, count, out);
  }
}

TARGET Band find_band(const Spectra& s, int64_t bin) {
  const int64_t count = s.transform.half + 1;
  const float* weights = s.mel + bin * count;
  Ints at, begin = Ints{} + static_cast<int32_t>(count), end{};
  for (int lane = 0; lane < LANES; ++lane) at[lane] = lane;
  for (int64_t k = 0; k < count; k += LANES, at += LANES) {
    const Ints some = load(weights + k, count - k) != 0.0f;
    begin = some & (at < begin) ? at : begin;
    end = some ? at + 1 : end;
  }
  Band band{begin[0], end[0]};
  for (int lane = 1; lane < LANES; ++lane) {
    band.begin = std::min<int64_t>(band.begin, begin[lane]);
    band.end = std::max<int64_t>(band.end, end[lane]);
  }
  return band;
}

TARGET int64_t lanes() { return LANES; }
