#include "sample_logits.h"

#include <cstdlib>
#include <memory>

#include "logit_row.h"

namespace fastgen::FASTGEN_ISA {
namespace {

struct Settings {
  double temperature, top_k, top_p, min_p, typical_p, repetition, presence, frequency;

  float inverse_temperature() const {
    return std::min(static_cast<float>(1 / (temperature > 0 ? temperature : 1)), kLargest);
  }
  // How many tokens top-k leaves of n.
  int64_t kept(int64_t n) const {
    const double k = temperature == 0 ? 1 : top_k;
    return k >= 1 && k < static_cast<double>(n) ? static_cast<int64_t>(k) : n;
  }
};
static_assert(sizeof(Settings) == SampleLogits::kSettings * sizeof(double));

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Memory of a thread, made when it is first needed.
struct Scratch {
  std::unique_ptr<float[]> row;
  std::unique_ptr<int32_t[], Free> counts;  // all zero between rows
  Candidates found, edge;

  float* row_of(int64_t n) {
    if (!row) row.reset(new float[n]);
    return row.get();
  }
  int32_t* counts_of(int64_t n) {
    if (!counts) counts.reset(static_cast<int32_t*>(std::calloc(n, sizeof(int32_t))));
    return counts.get();
  }
};

// Penalties on the tokens of the prompt and the output, each token once.
void penalize(const SampleLogits& task, int64_t row, const Settings& s, int32_t* counts, float* z) {
  constexpr int32_t kPromptAlone = -1;
  const int64_t* prompt = task.prompt + row * task.prompt_length;
  const int64_t* output = task.output + row * task.output_length;
  const auto for_each = [&](const int64_t* tokens, int64_t length, auto visit) {
    for (int64_t i = 0; i < length; ++i)
      if (tokens[i] >= 0 && tokens[i] < task.vocabulary) visit(tokens[i]);
  };
  for_each(output, task.output_length, [&](int64_t t) { ++counts[t]; });
  for_each(prompt, task.prompt_length, [&](int64_t t) { counts[t] += counts[t] == 0 ? kPromptAlone : 0; });
  const float repetition = static_cast<float>(s.repetition), presence = static_cast<float>(s.presence),
              frequency = static_cast<float>(s.frequency);
  const auto apply = [&](int64_t t) {
    if (counts[t] == 0) return;
    z[t] = z[t] > 0 ? z[t] / repetition : z[t] * repetition;
    if (counts[t] > 0) z[t] = z[t] - (frequency * static_cast<float>(counts[t]) + presence);
    counts[t] = 0;
  };
  for_each(output, task.output_length, apply);
  for_each(prompt, task.prompt_length, apply);
}

// The row with its bias and penalties, or the row itself where it has none.
const float* adjusted(const SampleLogits& task, int64_t row, const Settings& s, const float* raw,
                      Scratch& scratch) {
  const bool penalties = (task.output_length && (s.presence != 0 || s.frequency != 0)) ||
                         (task.output_length + task.prompt_length && s.repetition != 1);
  if (!task.bias && !penalties) return raw;
  float* z = scratch.row_of(task.vocabulary);
  const float* bias = task.bias ? task.bias + row * task.bias_stride : nullptr;
  for (int64_t i = 0; i < task.vocabulary; ++i) {
    const float x = raw[i] < kLargest ? raw[i] : kLargest;
    z[i] = bias ? x + bias[i] : x;
  }
  if (penalties) penalize(task, row, s, scratch.counts_of(task.vocabulary), z);
  return z;
}

void weigh(Candidates& candidates) {
  for (Candidate& c : candidates) c.weight = exp_nonpositive<ScalarLanes>(c.y);
}

int64_t mass_of(const Candidate* first, const Candidate* last) {
  int64_t sum = 0;
  for (; first != last; ++first) sum += fixed_point(first->weight);
  return sum;
}

// Keeps the shortest prefix, in order, whose mass reaches `limit`; what is kept has no order.
void shorten(Candidates& candidates, int64_t limit) {
  Candidate *begin = candidates.data(), *first = begin, *last = begin + candidates.size();
  while (last - first > 1) {
    Candidate* middle = first + (last - first) / 2;
    std::nth_element(first, middle, last);
    const int64_t left = mass_of(first, middle);
    if (left >= limit) {
      last = middle;
    } else {
      limit -= left;
      first = middle;
    }
  }
  candidates.resize(last - begin);
}

// The tokens that top-p keeps of the whole row: all of the buckets before that in which the mass is reached,
// and a part of that one.
void collect_top_p(const float* z, int64_t n, Scale scale, double share, Scratch& scratch) {
  Histogram histogram;
  fill_histogram(z, n, scale, histogram);
  int64_t total = 0;
  for (int64_t mass : histogram.mass) total += mass;
  int64_t limit = reached(share, total);
  int border = 0;
  for (; border < kBuckets - 1 && histogram.mass[border] < limit; ++border) limit -= histogram.mass[border];
  Candidates& edge = scratch.edge;
  edge.clear();
  for_each_vector(z, n, [&](F32 x, int64_t first) {
    const I32 bucket = bucket_of(scale.of(x));
    for_each_lane(bucket <= border, first, [&](int64_t i) {
      Candidates& list = bucket[i - first] < border ? scratch.found : edge;
      list.push_back({order_of(z[i], i), scale.of(z[i]), 0});
    });
  });
  weigh(edge);
  shorten(edge, limit);
  scratch.found.insert(scratch.found.end(), edge.begin(), edge.end());
}

// Keeps those whose surprise is nearest to the entropy: -log p - entropy = mean - y.
void keep_typical(Candidates& candidates, double share) {
  int64_t mass = 0, moment = 0;
  for (const Candidate& c : candidates) {
    mass += fixed_point(c.weight);
    moment += fixed_point(c.weight * std::max(c.y, -87.0f));
  }
  const float mean = static_cast<float>(static_cast<double>(moment) / static_cast<double>(mass));
  for (Candidate& c : candidates) {
    const float distance = mean - c.y;
    const uint32_t bits = static_cast<uint32_t>(ScalarLanes::as_int(distance)) & 0x7FFFFFFFu;
    c.order = static_cast<uint64_t>(bits) << 32 | c.token();
  }
  shorten(candidates, reached(share, mass));
}

// Leaves in scratch.found what the settings keep of a row, and returns false where they keep all.
bool filter(const float* z, int64_t n, Scale scale, const Settings& s, Scratch& scratch) {
  Candidates& found = scratch.found;
  found.clear();
  const int64_t k = s.kept(n);
  if (k < n) {
    collect_top_k(z, n, k, scale, found);
    weigh(found);
    if (s.top_p < 1) shorten(found, reached(s.top_p, mass_of(found.data(), found.data() + found.size())));
  } else if (s.top_p < 1) {
    collect_top_p(z, n, scale, s.top_p, scratch);
  } else if (s.min_p > 0) {
    const float about = log<ScalarLanes>(std::max(static_cast<float>(s.min_p), 0x1p-126f));
    collect_above(z, n, about - 0.01f, scale, found);
  } else if (s.typical_p < 1) {
    collect_above(z, n, kMinusInfinity, scale, found);
  } else {
    return false;
  }
  if (s.min_p > 0 || s.typical_p < 1) weigh(found);
  if (s.min_p > 0) {
    const float lowest = static_cast<float>(s.min_p);
    std::erase_if(found, [=](const Candidate& c) { return c.weight < lowest; });
  }
  if (s.typical_p < 1) keep_typical(found, s.typical_p);
  return true;
}

// The token of the highest y + noise so far; of equal ones the lowest.
struct Race {
  const Stream& stream;
  int64_t token;
  float best;

  void enter(int64_t t, float y) {
    const uint32_t word = stream.block(static_cast<uint32_t>(t >> 2)).w[t & 3];
    const float height = y + gumbel_from_word<ScalarLanes>(static_cast<int32_t>(word));
    if (height > best || (height == best && t < token)) token = t, best = height;
  }
};

// Lanes whose noise may be as high as best - y: of a word whose n highest bits are not all zero the noise is
// below n log(2).
FASTGEN_INLINE I32 may_win(F32 y, U32 word, float best) {
  F32 bits = (best - y) * 1.442695f - 0.01f;
  bits = bits > broadcast(0) ? bits : broadcast(0);
  bits = bits < broadcast(31) ? bits : broadcast(31);
  const U32 top = word >> 1;
  return (I32)(top >> (U32)(31 - VectorLanes::to_int(bits))) == 0;
}

// A race of the whole row that starts with `first`, best with its likeliest token.
int64_t race_of_row(const float* z, int64_t n, Scale scale, const Stream& stream, int64_t first) {
  constexpr int64_t kPiece = 512;
  constexpr float kHighestNoise = 22.2f;
  uint32_t words[kPiece] = {};
  Race race{stream, first, kMinusInfinity};
  race.enter(first, scale.of(z[first]));
  for (int64_t begin = 0; begin < n; begin += kPiece) {
    const int64_t count = std::min(kPiece, n - begin);
    if (scale.of(extremes(z + begin, count).largest) + kHighestNoise < race.best) continue;
    bits(stream, begin / 4, count, false, words);
    for_each_vector(z + begin, count, [&](F32 x, int64_t i) {
      const F32 y = scale.of(x);
      for_each_lane(may_win(y, load<U32>(words + i), race.best) & (x > broadcast(kMinusInfinity)), begin + i,
                    [&](int64_t t) { race.enter(t, scale.of(z[t])); });
    });
  }
  return race.token;
}

// A race of the candidates: one by one if they are few, else as a row in which the others are -inf.
int64_t race_of_candidates(const Candidates& found, int64_t n, const Stream& stream, Scratch& scratch) {
  if (found.size() * 32 > static_cast<size_t>(n)) {
    float* y = scratch.row_of(n);
    std::fill(y, y + n, kMinusInfinity);
    for (const Candidate& c : found) y[c.token()] = c.y;
    return race_of_row(y, n, {0, 1}, stream, found[0].token());
  }
  Race race{stream, 0, kMinusInfinity};
  for (const Candidate& c : found) race.enter(c.token(), c.y);
  return race.token;
}

int64_t draw(const SampleLogits& task, int64_t row, const Settings& s, const float* z, float largest,
             Scratch& scratch) {
  const int64_t n = task.vocabulary;
  if (s.kept(n) == 1 || largest == kMinusInfinity) return first_of(z, n, largest);
  const Stream stream(task.seed, task.sample_ids[row], static_cast<uint32_t>(task.step[row]), task.stream);
  const Scale scale{largest, s.inverse_temperature()};
  if (filter(z, n, scale, s, scratch)) return race_of_candidates(scratch.found, n, stream, scratch);
  return race_of_row(z, n, scale, stream, first_of(z, n, largest));
}

float log_probability(const float* raw, int64_t n, float largest, int64_t token) {
  const Scale scale{largest, 1};
  const double total = static_cast<double>(total_mass(raw, n, scale)) * 0x1p-40;
  return scale.of(raw[token]) - log<ScalarLanes>(static_cast<float>(total));
}

void sample_row(const SampleLogits& task, int64_t row, Scratch& scratch) {
  const int64_t n = task.vocabulary;
  const float* raw = task.logits + row * n;
  Settings s;
  memcpy(&s, task.settings + row * SampleLogits::kSettings, sizeof s);
  const Extremes found = extremes(raw, n);
  int64_t& token = task.token[row];
  task.log_prob[row] = __builtin_nanf("");
  if (found.has_nan) {
    token = SampleLogits::kHasNan;
    return;
  }
  const float* z = adjusted(task, row, s, raw, scratch);
  const float largest = z == raw ? found.largest : extremes(z, n).largest;
  if (largest == kMinusInfinity) {
    token = SampleLogits::kHasNone;
    return;
  }
  token = draw(task, row, s, z, largest, scratch);
  task.log_prob[row] = log_probability(raw, n, found.largest, token);
}

}  // namespace

void sample_logits(const SampleLogits& task, int64_t first_row, int64_t last_row) {
  Scratch scratch;
  for (int64_t row = first_row; row < last_row; ++row) sample_row(task, row, scratch);
}

}  // namespace fastgen::FASTGEN_ISA
