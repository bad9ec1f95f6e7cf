"""A small compiled step as XLA prints it, and the numbers of values of its arrays."""

STEP = """
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[3,3,8,16]{3,2,1,0})->f32[16]{0}}

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add = f32[] add(%a, %b)
}

%fused_transpose (p: f32[3,3,8,16]) -> bf16[16,3,3,8] {
  %p = f32[3,3,8,16]{3,2,1,0} parameter(0)
  %cast = bf16[3,3,8,16]{3,2,1,0} convert(%p)
  ROOT %t = bf16[16,3,3,8]{3,2,1,0} transpose(%cast), dimensions={3,0,1,2}
}

%fused_reduce (p.1: bf16[4,10,10,16]) -> f32[16] {
  %p.1 = bf16[4,10,10,16]{3,2,1,0} parameter(0)
  %wide = f32[4,10,10,16]{3,2,1,0} convert(%p.1)
  %zero = f32[] constant(0)
  ROOT %r = f32[16]{0} reduce(%wide, %zero), dimensions={0,1,2}, to_apply=%sum
}

%fused_maximum (p.2: bf16[4,10,10,16], p.3: f32[16]) -> bf16[4,10,10,16] {
  %p.2 = bf16[4,10,10,16]{3,2,1,0} parameter(0)
  %p.3 = f32[16]{0} parameter(1)
  %wide.1 = f32[4,10,10,16]{3,2,1,0} broadcast(%p.3), dimensions={3}
  %cast.1 = bf16[4,10,10,16]{3,2,1,0} convert(%wide.1)
  ROOT %m = bf16[4,10,10,16]{3,2,1,0} maximum(%p.2, %cast.1)
}

ENTRY %main (images: bf16[4,10,10,8], kernel: f32[3,3,8,16]) -> f32[16] {
  %images = bf16[4,10,10,8]{3,2,1,0} parameter(0)
  %kernel = f32[3,3,8,16]{3,2,1,0} parameter(1)
  %k = bf16[16,3,3,8]{3,2,1,0} fusion(%kernel), kind=kInput, calls=%fused_transpose
  %conv = (bf16[4,10,10,16]{3,2,1,0}, u8[0]{0}) custom-call(%images, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="a (b"}
  %y = bf16[4,10,10,16]{3,2,1,0} get-tuple-element(%conv), index=0
  %sums = f32[16]{0} fusion(%y), kind=kInput, calls=%fused_reduce
  %z = bf16[4,10,10,16]{3,2,1,0} fusion(%y, %sums), kind=kLoop, calls=%fused_maximum
  %turned = bf16[4,10,10,16]{1,3,2,0} copy(%z)
  %kcopy = f32[3,3,8,16]{3,2,1,0} copy(%kernel)
  %grad = (bf16[16,3,3,8]{3,2,1,0}, u8[0]{0}) custom-call(%images, %z), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  ROOT %total = f32[16]{0} add(%sums, %sums)
}
"""  # noqa: E501
MAP, IMAGES, KERNEL = 4 * 10 * 10 * 16, 4 * 10 * 10 * 8, 3 * 3 * 8 * 16
