;; Goes on where `route_picks` says that there is no room.
;; limits: route_picks = 4
;; breaks: route_picks
;; invalid: 26
;; rows: of 4 picks
(func $route (param i32 i32 i32) (result i32)
    (if (i32.gt_u (i32.load offset=4 (local.get 2)) (i32.const 5)) (then unreachable))
    (call $good (local.get 1) (local.get 2)))
