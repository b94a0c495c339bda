;; A mixture that is not a number.
;; plan: pick 0 has the weight NaN
(func $plan (param i32 i32) (result i32) (call $fixed (i32.const 1) (f32.const nan)))
