"""The GLSL of splats: EWA projection and view-dependent colour in the vertex stage, fall-off in the fragment stage.

Constants and rules are those of the project's rasteriser and of gsplat: 0.3 px^2 of blur with the opacity
compensated for it (antialiased mode), alpha = min(0.999, opacity * exp(-s)) and nothing below 1/255, the tangent of
the projection's Jacobian clamped 15 % of the frame beyond its edges, colour max(SH + 0.5, 0). Colours are display sRGB
and are blended as such, premultiplied, back to front.
"""

from __future__ import annotations

import gpu

TEXTURE_WIDTH = 4096
"""Texels per row of the data textures (a power of two: the shader shifts and masks)."""

SAMPLERS = (
    "order", "owner", "places", "turn", "sizes", "base", "harmonics", "rest_turn", "matrices", "scene_depth"
)  # fmt: skip
"""order [N] index; owner [N] object; places [N * 3 / 4] xyz without gaps; turn [N] wxyz; sizes as places; base [N] SH
degree 0, opacity; harmonics [N * T] higher coefficients, red, green, blue, red, ... in T texels a splat; rest_turn [N]
wxyz at rest, or zeros where nothing turned; matrices [M * 3] rows of each object's 3 x 4 matrix; scene_depth [H, W]
window depth that hides what lies behind it."""

_LENS = """
struct SplatLens {
  mat4 w2c;
  mat4 projection;
  vec4 camera;    /* world position; w: 1 for a parallel projection */
  vec4 frame;     /* width, height in px; coefficients per splat above degree 0; texels for them */
};
"""

_VERTEX = """
ivec2 at(int k) { return ivec2(k & (TEXTURE_WIDTH - 1), k / TEXTURE_WIDTH); }

/* Three floats of a stream without gaps, the first at place k of texel a. */
vec3 three(vec4 a, vec4 b, int k)
{
  return k == 0 ? a.xyz : k == 1 ? a.yzw : k == 2 ? vec3(a.zw, b.x) : vec3(a.w, b.xy);
}

float coefficient(int splat, int k)
{
  int texel = splat * int(lens.frame.w) + k / 4;
  return texelFetch(harmonics, at(texel), 0)[k % 4];
}

vec3 harmonic(int splat, int k)
{
  return vec3(coefficient(splat, 3 * k), coefficient(splat, 3 * k + 1), coefficient(splat, 3 * k + 2));
}

vec3 radiance(int splat, vec3 dc, vec3 d)
{
  int count = int(lens.frame.z);
  vec3 c = 0.28209479177387814 * dc + 0.5;
  float x = d.x, y = d.y, z = d.z;
  float xx = x * x, yy = y * y, zz = z * z;
  if (count >= 3) {
    c += 0.4886025119029199 * (-y * harmonic(splat, 0) + z * harmonic(splat, 1) - x * harmonic(splat, 2));
  }
  if (count >= 8) {
    c += 1.0925484305920792 * (x * y * harmonic(splat, 3) - y * z * harmonic(splat, 4) - x * z * harmonic(splat, 6));
    c += 0.31539156525252005 * (2.0 * zz - xx - yy) * harmonic(splat, 5);
    c += 0.5462742152960396 * (xx - yy) * harmonic(splat, 7);
  }
  if (count >= 15) {
    c -= 0.5900435899266435 * y * (3.0 * xx - yy) * harmonic(splat, 8);
    c += 2.890611442640554 * x * y * z * harmonic(splat, 9);
    c -= 0.4570457994644658 * y * (4.0 * zz - xx - yy) * harmonic(splat, 10);
    c += 0.3731763325901154 * z * (2.0 * zz - 3.0 * xx - 3.0 * yy) * harmonic(splat, 11);
    c -= 0.4570457994644658 * x * (4.0 * zz - xx - yy) * harmonic(splat, 12);
    c += 1.445305721320277 * z * (xx - yy) * harmonic(splat, 13);
    c -= 0.5900435899266435 * x * (xx - 3.0 * yy) * harmonic(splat, 14);
  }
  if (count >= 24) {
    c += 2.5033429417967046 * x * y * (xx - yy) * harmonic(splat, 15);
    c -= 1.7701307697799304 * y * z * (3.0 * xx - yy) * harmonic(splat, 16);
    c += 0.9461746957575601 * x * y * (7.0 * zz - 1.0) * harmonic(splat, 17);
    c -= 0.6690465435572892 * y * z * (7.0 * zz - 3.0) * harmonic(splat, 18);
    c += 0.10578554691520431 * (zz * (35.0 * zz - 30.0) + 3.0) * harmonic(splat, 19);
    c -= 0.6690465435572892 * x * z * (7.0 * zz - 3.0) * harmonic(splat, 20);
    c += 0.47308734787878004 * (xx - yy) * (7.0 * zz - 1.0) * harmonic(splat, 21);
    c -= 1.7701307697799304 * x * z * (xx - 3.0 * yy) * harmonic(splat, 22);
    c += 0.6258357354491761 * (xx * (xx - 3.0 * yy) - yy * (3.0 * xx - yy)) * harmonic(splat, 23);
  }
  return max(c, vec3(0.0));
}

mat3 rotation(vec4 q)   /* w, x, y, z of any length */
{
  q = normalize(q);
  float w = q.x, x = q.y, y = q.z, z = q.w;
  return mat3(1.0 - 2.0 * (y * y + z * z), 2.0 * (x * y + w * z), 2.0 * (x * z - w * y),
              2.0 * (x * y - w * z), 1.0 - 2.0 * (x * x + z * z), 2.0 * (y * z + w * x),
              2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y));
}

/* Columns of the 2 x 3 Jacobian from camera space to px, y up; the last row stays empty. */
mat3 jacobian(vec3 p)
{
  vec2 focal = vec2(lens.projection[0][0], lens.projection[1][1]);
  vec2 half_frame = 0.5 * lens.frame.xy;
  if (lens.camera.w > 0.5) {
    return mat3(focal.x * half_frame.x, 0.0, 0.0, 0.0, focal.y * half_frame.y, 0.0, 0.0, 0.0, 0.0);
  }
  vec2 shift = vec2(lens.projection[2][0], lens.projection[2][1]);
  float near = 1.0 / -p.z;
  /* Edges of the frame are at (-1 + shift) / focal and (1 + shift) / focal. */
  vec2 tangent = clamp(p.xy * near, (shift - 1.3) / focal, (shift + 1.3) / focal);
  vec2 scale = focal * half_frame * near;
  return mat3(scale.x, 0.0, 0.0, 0.0, scale.y, 0.0, scale.x * tangent.x, scale.y * tangent.y, 0.0);
}

void main()
{
  gl_Position = vec4(2.0, 2.0, 2.0, 1.0);   /* outside, until all is known to be well */
  int splat = int(texelFetch(order, at(gl_InstanceID), 0).r);
  int first = 3 * splat;
  ivec2 from = at(first / 4), to = at((first + 2) / 4);
  vec4 colour = texelFetch(base, at(splat), 0);
  int row = 3 * int(texelFetch(owner, at(splat), 0).r);
  vec4 m0 = texelFetch(matrices, at(row), 0);
  vec4 m1 = texelFetch(matrices, at(row + 1), 0);
  vec4 m2 = texelFetch(matrices, at(row + 2), 0);
  vec4 local = vec4(three(texelFetch(places, from, 0), texelFetch(places, to, 0), first & 3), 1.0);
  vec3 world = vec3(dot(m0, local), dot(m1, local), dot(m2, local));
  mat3 object = transpose(mat3(m0.xyz, m1.xyz, m2.xyz));
  vec3 p = (lens.w2c * vec4(world, 1.0)).xyz;
  bool parallel = lens.camera.w > 0.5;
  if (!parallel && p.z > -0.01) {
    return;
  }
  mat3 turned = rotation(texelFetch(turn, at(splat), 0));
  vec3 sigma = three(texelFetch(sizes, from, 0), texelFetch(sizes, to, 0), first & 3);
  mat3 axes = mat3(turned[0] * sigma.x, turned[1] * sigma.y, turned[2] * sigma.z);
  mat3 spread = jacobian(p) * mat3(lens.w2c) * object * axes;
  mat3 covariance = spread * transpose(spread);
  float a = covariance[0][0], b = covariance[0][1], c = covariance[1][1];
  float before = max(a * c - b * b, 0.0);
  a += 0.3;
  c += 0.3;
  float opacity = colour.a * sqrt(before / (a * c - b * b));
  if (!(opacity >= 1.0 / 255.0)) {
    return;
  }
  float middle = 0.5 * (a + c);
  float radius = sqrt(0.25 * (a - c) * (a - c) + b * b);
  float major = middle + radius;
  float minor = (a * c - b * b) / major;
  vec2 along = radius > 1e-6 * middle ? (a >= c ? vec2(0.5 * (a - c) + radius, b) : vec2(b, 0.5 * (c - a) + radius))
                                      : vec2(1.0, 0.0);
  along = normalize(along);
  float reach = sqrt(2.0 * log(255.0 * opacity));
  unit = corner * reach;
  vec2 offset = along * unit.x * sqrt(major) + vec2(-along.y, along.x) * unit.y * sqrt(minor);
  vec3 forward = -vec3(lens.w2c[0][2], lens.w2c[1][2], lens.w2c[2][2]);
  vec3 direction = vec3(0.0, 0.0, 1.0);
  if (lens.frame.z > 0.0) {
    direction = normalize(inverse(object) * (parallel ? forward : world - lens.camera.xyz));
    /* Harmonics are those of the splat at rest: look at it as if it had not been turned. */
    vec4 rest = texelFetch(rest_turn, at(splat), 0);
    direction = dot(rest, rest) > 0.0 ? rotation(rest) * (transpose(turned) * direction) : direction;
  }
  tint = vec4(radiance(splat, colour.rgb, direction), opacity);
  depth = -p.z;
  vec4 clip = lens.projection * vec4(p, 1.0);
  gl_Position = clip + vec4(2.0 * offset / lens.frame.xy * clip.w, 0.0, 0.0);
}
""".replace("TEXTURE_WIDTH", str(TEXTURE_WIDTH))

_FRAGMENT = """
void main()
{
  ivec2 pixel = min(ivec2(gl_FragCoord.xy), textureSize(scene_depth, 0) - 1);
  float alpha = min(0.999, tint.a * exp(-0.5 * dot(unit, unit)));
  if (alpha < 1.0 / 255.0 || gl_FragCoord.z > texelFetch(scene_depth, pixel, 0).r) {
    discard;
  }
  colour = vec4(tint.rgb * alpha, alpha);
  reach_sum = vec4(depth * alpha, 0.0, 0.0, alpha);
}
"""

_COVER_VERTEX = "void main() { gl_Position = vec4(corner, 0.0, 1.0); }"

_COVER_FRAGMENT = """
void main()
{
  vec4 c = texelFetch(picture, ivec2(gl_FragCoord.xy) - ivec2(place.xy), 0);
  vec3 display = c.rgb / max(c.a, 1e-6);
  vec3 low = display / 12.92;
  vec3 high = pow((display + 0.055) / 1.055, vec3(2.4));
  colour = vec4(mix(low, high, greaterThan(display, vec3(0.04045))) * c.a, c.a);
}
"""


def create_splat_shader() -> gpu.types.GPUShader:
    """The shader that draws one splat per instance of a quad with corners at +-1 (see `SAMPLERS`, block `lens`).

    Two targets: premultiplied display colour and alpha; distance from the camera times alpha, and alpha.
    """
    info = gpu.types.GPUShaderCreateInfo()
    info.typedef_source(_LENS)
    info.uniform_buf(0, "SplatLens", "lens")
    for slot, name in enumerate(SAMPLERS):
        info.sampler(slot, "FLOAT_2D", name)
    info.vertex_in(0, "VEC2", "corner")
    link = gpu.types.GPUStageInterfaceInfo("effigy_splat")
    link.smooth("VEC2", "unit")
    link.flat("VEC4", "tint")
    link.flat("FLOAT", "depth")
    info.vertex_out(link)
    info.fragment_out(0, "VEC4", "colour")
    info.fragment_out(1, "VEC4", "reach_sum")
    info.vertex_source(_VERTEX)
    info.fragment_source(_FRAGMENT)
    return gpu.shader.create_from_info(info)


def create_cover_shader() -> gpu.types.GPUShader:
    """The shader that lays a picture (sampler `picture`, its corner at `place` px) over a linear frame buffer."""
    info = gpu.types.GPUShaderCreateInfo()
    info.sampler(0, "FLOAT_2D", "picture")
    info.push_constant("VEC4", "place")
    info.vertex_in(0, "VEC2", "corner")
    info.fragment_out(0, "VEC4", "colour")
    info.vertex_source(_COVER_VERTEX)
    info.fragment_source(_COVER_FRAGMENT)
    return gpu.shader.create_from_info(info)
