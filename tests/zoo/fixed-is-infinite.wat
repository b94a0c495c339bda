;; A mixture without bound.
;; plan: pick 0 has the weight inf
(func $plan (param i32 i32) (result i32) (call $fixed (i32.const 1) (f32.const inf)))
