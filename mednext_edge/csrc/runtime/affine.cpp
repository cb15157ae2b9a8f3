#include "affine.h"

#include <algorithm>
#include <cmath>

#include "error.h"

namespace mednext {
namespace {

using Matrix = std::array<std::array<double, 3>, 3>;

// Below this sine-like measure of how far the axes span space the inverse is of no use.
constexpr double kFlat = 1e-6;

struct Direction {
  int axis;  // of (x, y, z)
  bool negative;
};

double determinant(const Matrix& m) {
  return m[0][0] * (m[1][1] * m[2][2] - m[1][2] * m[2][1]) - m[0][1] * (m[1][0] * m[2][2] - m[1][2] * m[2][0]) +
         m[0][2] * (m[1][0] * m[2][1] - m[1][1] * m[2][0]);
}

Matrix inverse_transposed(const Matrix& m) {
  const double det = determinant(m);
  Matrix out;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) {
      const int r = (i + 1) % 3, s = (i + 2) % 3, c = (j + 1) % 3, d = (j + 2) % 3;
      out[i][j] = (m[r][c] * m[s][d] - m[r][d] * m[s][c]) / det;
    }
  return out;
}

std::array<double, 3> lengths(const Affine& affine) {
  std::array<double, 3> out{};
  for (int column = 0; column < 3; ++column) {
    double squares = 0;
    for (int row = 0; row < 3; ++row) squares += affine[4 * row + column] * affine[4 * row + column];
    out[column] = std::sqrt(squares);
  }
  return out;
}

// The rotation next to the affine's axes: the orthogonal factor of the polar decomposition, by Newton's iteration
// (N. Higham, SIAM J. Sci. Stat. Comput. 7, 1986), which is what nibabel makes of the singular vectors.
Matrix nearest_rotation(const Affine& affine) {
  const auto size = lengths(affine);
  Matrix rotation;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) rotation[i][j] = affine[4 * i + j] / size[j];
  for (int step = 0; step < 100; ++step) {
    const Matrix other = inverse_transposed(rotation);
    double change = 0;
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j) {
        const double mean = (rotation[i][j] + other[i][j]) / 2;
        change = std::max(change, std::abs(mean - rotation[i][j]));
        rotation[i][j] = mean;
      }
    if (change < 1e-15) break;
  }
  return rotation;
}

// For each image axis (x, y, z) the world axis it follows most, each world axis once; the best aligned chooses first.
std::array<Direction, 3> own_directions(const Affine& affine) {
  Matrix rotation = nearest_rotation(affine);
  std::array<int, 3> order{0, 1, 2};
  const auto best = [&](int column) {
    double most = 0;
    for (int row = 0; row < 3; ++row) most = std::max(most, rotation[row][column] * rotation[row][column]);
    return most;
  };
  const std::array<double, 3> alignment{best(0), best(1), best(2)};
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return alignment[a] > alignment[b]; });
  std::array<Direction, 3> directions{};
  for (const int column : order) {
    int axis = 0;
    for (int row = 1; row < 3; ++row)
      if (std::abs(rotation[row][column]) > std::abs(rotation[axis][column])) axis = row;
    directions[column] = {axis, rotation[axis][column] < 0};
    rotation[axis] = {0, 0, 0};
  }
  return directions;
}

}  // namespace

void check_affine(const Affine& affine) {
  for (const double value : affine)
    if (!std::isfinite(value)) fail(MEDNEXT_E_DATA, "the affine holds NaN or infinity; give voxel indices -> RAS mm");
  if (affine[12] != 0 || affine[13] != 0 || affine[14] != 0 || affine[15] != 1)
    fail(MEDNEXT_E_DATA, "the last row of the affine is not 0 0 0 1; give it row by row");
  Matrix linear;
  for (int i = 0; i < 3; ++i)
    for (int j = 0; j < 3; ++j) linear[i][j] = affine[4 * i + j];
  const auto size = lengths(affine);
  const double span = std::abs(determinant(linear)), most = size[0] * size[1] * size[2];
  if (!(span > kFlat * most) || !std::isfinite(most))
    fail(MEDNEXT_E_DATA, "the affine has no inverse: its axes do not span space. Repair the geometry first");
}

std::array<double, 3> voxel_size(const Affine& affine) {
  const auto size = lengths(affine);
  return {size[2], size[1], size[0]};
}

Axes network_axes(const Affine& affine, const std::optional<std::string>& orientation,
                  const std::array<int, 3>& transpose) {
  // Image axis that becomes each turned axis, both of (x, y, z), and whether it runs backwards.
  std::array<int, 3> source{0, 1, 2};
  std::array<bool, 3> flip{};
  if (orientation) {
    const auto own = own_directions(affine);
    for (int turned = 0; turned < 3; ++turned) {
      const char code = (*orientation)[turned];
      const Direction wanted{code == 'L' || code == 'R' ? 0 : code == 'P' || code == 'A' ? 1 : 2,
                             code == 'L' || code == 'P' || code == 'I'};
      for (int image = 0; image < 3; ++image)
        if (own[image].axis == wanted.axis) {
          source[turned] = image;
          flip[turned] = own[image].negative != wanted.negative;
        }
    }
  }
  Axes axes;
  for (int k = 0; k < 3; ++k) {
    const int turned = 2 - transpose[k];
    axes.source[k] = 2 - source[turned];
    axes.flip[k] = flip[turned];
  }
  return axes;
}

}  // namespace mednext
