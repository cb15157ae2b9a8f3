// GELU by its definition, x * Phi(x) with the normal distribution's Phi (Hendrycks, Gimpel, "Gaussian Error Linear
// Units", 2016, the erf form), without erf.
//
// Phi(x) = 1/2 + x P(x^2) with a polynomial P, clamped to [0, 1]. P was fitted by linear programming to the least largest
// error of x * Phi(x) up to some |x|; beyond it need only leave [0, 1], which the clamp turns into exactly 0 or 1.
// Largest error over [-30, 30] with all roundings: 5.6e-7 in float32 (6e-8 in the mean square of normal x, as much as
// PyTorch's), of degree 14; 2.6e-5 for bfloat16, whose own step is 0.004 of a value, of degree 8. Beyond, the result is x
// or -0. Not-a-number stays; -infinity gives not-a-number as in PyTorch.
#pragma once

#include "numbers.h"

namespace mednext::MEDNEXT_ISA {

// P by Horner's rule in s = x^2 - middle; terms of the highest degree first.
template <int Count>
MEDNEXT_INLINE Lanes gelu_of(Lanes x, float middle, const float (&terms)[Count]) {
  const Lanes s = x * x - middle;
  Lanes p = every(terms[0]);
  MEDNEXT_UNROLL
  for (int i = 1; i < Count; ++i) p = p * s + terms[i];
  return x * at_most(at_least(x * p + 0.5f, Lanes{}), every(1.0f));
}

template <class T>
MEDNEXT_INLINE Lanes gelu(Lanes x) {
  if constexpr (sizeof(T) == sizeof(float)) {
    constexpr float TERMS[] = {1.3716918e-20f,  -6.2488615e-19f, 1.0016046e-17f, -1.6439732e-16f, 6.4732244e-15f,
                               -1.8805006e-13f, 4.0950494e-12f,  -8.563322e-11f, 1.7634967e-09f,  -3.4248554e-08f,
                               6.341477e-07f,   -1.1522579e-05f, 0.00021293286f, -0.0042955005f,  0.12908557f};
    return gelu_of(x, 15.0f, TERMS);
  } else {
    constexpr float TERMS[] = {3.572641e-11f, -8.98527e-10f,   1.1240343e-08f, -1.6440354e-07f, 2.771226e-06f,
                               -4.0474686e-05f, 0.0005490242f, -0.007756925f,  0.15786463f};
    return gelu_of(x, 10.0f, TERMS);
  }
}

}  // namespace mednext::MEDNEXT_ISA
