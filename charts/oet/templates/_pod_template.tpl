{{/* The volumes with scripts, as JSON: a list of name, path, subPath, readOnly and source. */}}
{{- define "oet.scriptVolumes" -}}
{{- $volumes := .Values.scripts.volumes -}}
{{- with .Values.scripts.configMap -}}
{{- $volumes = append $volumes (dict "name" "scripts" "source" (dict "configMap" (dict "name" .))) -}}
{{- end -}}
{{- $paths := list -}}
{{- range $volumes -}}
{{- $paths = append $paths (.path | default "") -}}
{{- end -}}
{{- if and (gt (len $volumes) 1) (has "" $paths) -}}
{{- fail "scripts.volumes, scripts.configMap: only a single volume can be at scripts.location itself; list all of them in scripts.volumes, each with a path" -}}
{{- end -}}
{{- if ne (len $paths) (len (uniq $paths)) -}}
{{- fail "scripts.volumes: two volumes have the same path" -}}
{{- end -}}
{{- toJson $volumes -}}
{{- end }}

{{/* The partial Pod manifest that the operator builds every script Pod on, as JSON. */}}
{{- define "oet.podTemplate" -}}
{{- $scripts := .Values.scripts -}}
{{- $template := deepCopy $scripts.podTemplate -}}
{{- $spec := $template.spec | default dict -}}
{{- $script := dict "name" "script" -}}
{{- $others := list -}}
{{- range $spec.containers -}}
{{- if eq .name "script" -}}{{- $script = . -}}{{- else -}}{{- $others = append $others . -}}{{- end -}}
{{- end -}}

{{- $mounts := list -}}
{{- $volumes := list -}}
{{- range include "oet.scriptVolumes" . | fromJsonArray -}}
{{- $folder := ternary (printf "%s/%s" $scripts.location .path) $scripts.location (not (empty .path)) -}}
{{- $mount := dict "name" .name "mountPath" $folder "readOnly" (dig "readOnly" true .) -}}
{{- if .subPath -}}{{- $_ := set $mount "subPath" .subPath -}}{{- end -}}
{{- $mounts = append $mounts $mount -}}
{{- $volumes = append $volumes (merge (dict "name" .name) .source) -}}
{{- end -}}

{{- $variables := dict "SCRIPTS_LOCATION" $scripts.location "OET_READ_VIA_PUBSUB" (toString .Values.features.readViaPubsub) -}}
{{- with include "oet.tangoHost" . -}}{{- $_ := set $variables "TANGO_HOST" . -}}{{- end -}}
{{- $variables = mergeOverwrite $variables $scripts.env -}}
{{- range $script.env -}}{{- $variables = omit $variables .name -}}{{- end -}}
{{- $env := concat (include "oet.env" $variables | fromJsonArray) ($script.env | default list) -}}

{{/* Empty lists and maps are left out: they would say the same at greater length. */ -}}
{{- $_ := set $script "env" $env -}}
{{- $lists := dict "volumeMounts" (concat $mounts ($script.volumeMounts | default list)) -}}
{{- $_ := set $lists "envFrom" (concat $scripts.envFrom ($script.envFrom | default list)) -}}
{{- $_ := set $lists "resources" ($script.resources | default $scripts.resources) -}}
{{- range $name, $value := $lists -}}{{- if $value -}}{{- $_ := set $script $name $value -}}{{- end -}}{{- end -}}

{{- $_ := set $spec "containers" (prepend $others $script) -}}
{{- $lists = dict "volumes" (concat $volumes ($spec.volumes | default list)) -}}
{{- $_ := set $lists "tolerations" (concat $scripts.tolerations ($spec.tolerations | default list)) -}}
{{- $_ := set $lists "nodeSelector" (merge ($spec.nodeSelector | default dict) $scripts.nodeSelector) -}}
{{- $_ := set $lists "imagePullSecrets" (concat $scripts.imagePullSecrets ($spec.imagePullSecrets | default list)) -}}
{{- range $name, $value := $lists -}}{{- if $value -}}{{- $_ := set $spec $name $value -}}{{- end -}}{{- end -}}
{{- $_ := set $template "spec" $spec -}}
{{- toPrettyJson $template -}}
{{- end }}
