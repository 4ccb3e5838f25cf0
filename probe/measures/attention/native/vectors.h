/* Vectors of single-precision numbers, as wide as the processor's, by the vector extensions of GCC and
   Clang; and the exponential and the logarithm of them. */

#include <stdint.h>

#ifdef __AVX512F__
#define WIDTH 16
#else
#define WIDTH 8
#endif

typedef float vec __attribute__((vector_size(4 * WIDTH)));
typedef int32_t ivec __attribute__((vector_size(4 * WIDTH)));

static inline vec fill(float x) { return x - (vec){}; }
static inline vec choose(ivec mask, vec yes, vec no)
{
    return (vec)(((ivec)yes & mask) | ((ivec)no & ~mask));
}
static inline vec larger(vec a, vec b) { return choose(a > b, a, b); }

/* e^x for x <= 0, to 2 units in the last place, 0 below -87: x = n ln 2 + r with |r| <= ln 2 / 2,
   and a polynomial in r. */
static inline vec exp_negative(vec x)
{
    const ivec tiny = x < -87.0f;
    const vec clipped = choose(tiny, fill(-87.0f), x);
    const vec n = (clipped * 1.44269504f + 12582912.0f) - 12582912.0f; /* to the nearest integer */
    const vec r = (clipped - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = r * 1.3888889e-3f + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const ivec power = (__builtin_convertvector(n, ivec) + 127) << 23;
    return (vec)((ivec)(p * (vec)power) & ~tiny);
}

/* ln x for 1e-37 <= x <= 1: x = 2^n m with m in [sqrt(1/2), sqrt(2)), and the series of
   ln((1 + s) / (1 - s)) with s = (m - 1) / (m + 1). */
static inline vec log_of(vec x)
{
    const ivec n = ((ivec)x - 0x3f3504f3) >> 23;
    const vec m = (vec)((ivec)x - (n << 23));
    const vec s = (m - 1.0f) / (m + 1.0f), z = s * s;
    vec p = z * 0.2222222f + 0.2857143f;
    p = p * z + 0.4f;
    p = p * z + 0.6666667f;
    p = p * z + 2.0f;
    return __builtin_convertvector(n, vec) * 0.693147180f + s * p;
}
